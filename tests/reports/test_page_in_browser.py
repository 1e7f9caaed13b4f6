"""The page in a real browser, without a screen and without a network: it sorts, filters and shows its pictures."""

import json
import re
import shutil
import subprocess

import pytest
from makers import fake_run, fill_gallery

from adlight.reports import page
from adlight.reports.collect import collect
from adlight.reports.grouping import average_runs
from adlight.reports.monitoring import Monitoring
from adlight.reports.reference import compare

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "chromium-headless-shell")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1400,2000"),
]
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no browser here: install Debian's chromium (apt-get install chromium), or another Chrome"
)

# what a reader would do, written down in the page's own document once its tables stand
SCRIPT = """
const errors = [];
addEventListener("error", (event) => errors.push(event.message));
console.error = (text) => errors.push(text);
addEventListener("load", async () => {
  for (const image of document.images) image.loading = "eager";
  while (document.querySelectorAll("table.dataTable").length < document.querySelectorAll("table[id]").length
    || ![...document.images].every((image) => image.complete))
    await new Promise((resolve) => setTimeout(resolve, 50));
  const table = document.querySelector("table#results");
  const tools = table.closest(".dt-container");
  const heading = (text) => [...table.tHead.querySelectorAll("th")].find((one) => one.textContent.trim() === text);
  const column = (text) => [...table.tHead.rows[0].cells].indexOf(heading(text));
  const values = (text) => [...table.tBodies[0].rows].filter((row) => row.cells.length > 1)
    .map((row) => (row.cells[column(text)].querySelector("a") ?? row.cells[column(text)]).textContent.trim());
  const redrawn = () => new Promise((resolve) => setTimeout(resolve, 50));
  const click = async (text) => { heading(text).click(); await redrawn(); };
  const type = async (text) => {
    tools.querySelector("input").value = text;
    tools.querySelector("input").dispatchEvent(new Event("input", { bubbles: true }));
    await redrawn();
  };
  const viewer = document.getElementById("viewer"), choices = viewer.querySelector("form").elements;
  const choose = (name, value) => {
    choices[name].value = value;
    for (const kind of ["input", "change"]) choices[name].dispatchEvent(new Event(kind, { bubbles: true }));
  };
  const counted = (name) => Number(viewer.querySelector(`[data-count=${name}]`).textContent);
  const matrix = () => ["found", "missed", "alarms", "passed"].map(counted);
  const tiles = () => viewer.querySelectorAll(".tile").length;
  const cell = table.tBodies[0].rows[0].cells[column("AUROC")];
  const seen = { names: values("name"), title: cell.title };
  seen.tables = document.querySelectorAll("table.dataTable").length;
  seen.difference = table.tBodies[0].rows[0].cells[column("ours - paper")].className;
  seen.failed = getComputedStyle(table.querySelector("td.failed")).backgroundColor;
  await click("AUROC"); seen.falling = values("AUROC");
  seen.sorted = heading("AUROC").getAttribute("aria-sort");
  await click("AUROC"); seen.rising = values("AUROC");
  seen.turned = heading("AUROC").getAttribute("aria-sort");
  await click("mask_ratio"); seen.ratios = values("mask_ratio");
  seen.before = heading("AUROC").getAttribute("aria-sort");
  await click("name"); seen.named = values("name");
  await type("FAILED"); seen.found = values("name");
  seen.count = tools.querySelector(".dt-info").textContent;
  await type("finished 0.25"); seen.both = values("mask_ratio");
  await type("nothing has this"); seen.none = values("name").length;
  await type(""); seen.all = values("name").length;
  seen.images = [...document.images].map((image) => [image.complete, image.naturalWidth]);
  const drawings = document.querySelectorAll("#ablation-section img, details[open] img");
  seen.drawings = [...drawings].map((one) => one.clientWidth);
  seen.link = table.tBodies[0].rows[0].cells[0].querySelector("a").getAttribute("href");
  seen.matrix = [matrix()]; seen.tiles = [tiles()];
  choose("category", 0); seen.matrix.push(matrix()); seen.tiles.push(tiles());
  choose("shift", choices.shift.min); seen.matrix.push(matrix());
  choose("shift", choices.shift.max); seen.matrix.push(matrix());
  choices.reset.click(); seen.matrix.push(matrix());
  choose("error", "wrong"); seen.wrong = [tiles(), viewer.querySelectorAll(".tile:is(.alarm, .miss)").length];
  choose("error", ""); choose("other", 1); choose("error", "flipped"); seen.flipped = tiles();
  seen.compared = viewer.querySelector(".scatter figcaption").textContent;
  choose("error", ""); choose("order", "low"); viewer.querySelector(".tile").click();
  const dialog = viewer.querySelector("dialog"), pane = dialog.querySelectorAll(".panes figure");
  seen.panes = [...pane].map((one) => one.querySelector("figcaption").textContent);
  const heat = dialog.querySelector("[name=opacity]");
  const opacity = () => getComputedStyle(dialog.querySelector(".map")).opacity;
  await new Promise((resolve) => setTimeout(resolve, 300));
  seen.layers = [...pane[0].querySelectorAll("img")].map((image) => [image.className, image.naturalWidth > 0]);
  heat.value = 80; heat.dispatchEvent(new Event("input", { bubbles: true })); seen.opacity = opacity();
  dialog.querySelector("[name=close]").click(); seen.closed = !dialog.open;
  seen.wide = document.documentElement.scrollWidth <= innerWidth;
  seen.fetched = performance.getEntriesByType("resource").map((one) => one.name)
    .filter((name) => !/^(data|blob|file):/.test(name));
  seen.errors = errors;
  const text = document.createElement("pre");
  text.id = "seen";
  text.textContent = JSON.stringify(seen);
  document.body.append(text);
});
"""


def browse(path, folder, *flags):
    words = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, path.as_uri()]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=True).stdout


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """A page over 12 runs, one of them failed."""
    folder = tmp_path_factory.mktemp("browser")
    for i in range(12):
        words = {"finished": False, "error": "no memory"} if i == 4 else {}
        fake_run(folder / "runs" / str(i), draw=i, shift=2 - i % 3, model__mask_ratio=(i % 4 + 1) / 8, **words)
    for i in range(2):
        fill_gallery(folder / "runs" / str(i), range(40))
    (folder / "paper.csv").write_text("category,x\nbottle,0.1\nscrew,0.1\n")
    found = compare(collect([str(folder / "runs")]), [str(folder / "paper.csv")], None)
    path = folder / "index.html"
    words = "Tried in a browser", 0.02, 3, 4, folder
    path.write_text(page.render(found, average_runs(found.results), *words, Monitoring()))
    return path


@pytest.fixture(scope="module")
def seen(html):
    """What the script found out."""
    probe = html.with_name("probe.html")
    probe.write_text(html.read_text().replace("<head>", f"<head><script>{SCRIPT}</script>", 1))
    dom = browse(probe, html.parent, "--dump-dom", "--virtual-time-budget=20000")
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None, "the page's script did not come to its end"
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


def test_the_script_ran_without_an_error(seen):
    assert seen["errors"] == [] and seen["tables"] == 5
    assert seen["fetched"] == []


def test_the_table_sorts(seen):
    assert seen["names"] == seen["named"] == [str(i) for i in range(12)]  # 10 comes after 9
    falling, rising = ([float(text[:5]) for text in seen[key] if text] for key in ("falling", "rising"))
    assert len(falling) == 11 and falling == sorted(falling, reverse=True) and rising == sorted(rising)
    assert seen["falling"][-1] == seen["rising"][-1] == ""  # the failed run stays last, whichever way
    assert (seen["sorted"], seen["turned"], seen["before"]) == ("descending", "ascending", None)
    ratios = list(map(float, seen["ratios"]))
    assert ratios == sorted(ratios)


def test_cells_say_more_than_they_show(seen):
    assert re.fullmatch(r"0\.\d+ \(0\.\d{4} to [01]\.\d{4}\)", seen["title"]), seen["title"]
    assert "above" in seen["difference"] and seen["failed"] not in ("rgba(0, 0, 0, 0)", "rgb(255, 255, 255)")


def test_the_table_filters(seen):
    assert seen["found"] == ["4"] and "12" in seen["count"] and "1 " in seen["count"]
    assert seen["both"] == ["0.25"] * 3
    assert seen["none"] == 0 and seen["all"] == 12


def test_pictures_and_drawings_are_shown(seen):
    assert len(seen["images"]) == 3 * 2 + 2 + 3 * 2 + 40 and all(width > 0 for _, width in seen["images"])
    assert len(seen["drawings"]) >= 7 and all(width > 40 for width in seen["drawings"])
    assert seen["wide"], "the page itself must not scroll sideways"


def test_the_viewer_counts_filters_and_compares(seen, html):
    rows = collect([str(html.parent / "runs")]).predictions
    first, second = (rows[rows["name"] == name].reset_index() for name in "01")

    def count(of, called):
        label = of["label"] == 1
        return [sum(called & label), sum(~called & label), sum(called & ~label), sum(~called & ~label)]

    calls = [of["score"] > of["threshold"] for of in (first, second)]
    bottle = first["category"] == "bottle"
    counts = count(first[bottle], calls[0][bottle])
    assert seen["matrix"] == [count(first, calls[0]), counts, [10, 0, 10, 0], [0, 10, 0, 10], counts]
    assert seen["tiles"] == [40, 20] and seen["wrong"] == [counts[1] + counts[2]] * 2
    flipped = (calls[0] != calls[1]) & bottle
    better = sum(flipped & (calls[0] == (first["label"] == 1)))
    assert seen["flipped"] == sum(flipped) > 0 and f"{better} right in 0" in seen["compared"]


def test_a_picture_has_its_map_over_it(seen):
    assert [text.split(":")[0] for text in seen["panes"]] == ["0", "1"]
    assert seen["layers"][:2] == [["image", True], ["map", True]] and all(loaded for _, loaded in seen["layers"])
    assert float(seen["opacity"]) == pytest.approx(0.8) and seen["closed"] and seen["link"] == "runs/0"


@pytest.mark.parametrize("width", [1400, 400])
def test_a_screenshot_is_kept(html, width):
    path = html.with_name(f"report-{width}.png")
    browse(html, html.parent, f"--screenshot={path}", f"--window-size={width},2000")
    from PIL import Image

    with Image.open(path) as image:
        assert image.size == (width, 2000)
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50  # not one blank area
    print(f"screenshot: {path}")
