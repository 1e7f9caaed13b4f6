"""The page in a real browser, without a screen and without a network: it sorts, filters and shows its pictures."""

import json
import re
import shutil
import subprocess

import pytest
from makers import fake_run

from adlight.reports import page, reference
from adlight.reports.collect import collect
from adlight.reports.summary import Report

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "chromium-headless-shell")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1400,2000"),
]
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no browser here: install Debian's chromium (apt-get install chromium), or another Chrome"
)

# what a reader would do, written down in the page's own document
SCRIPT = """
const errors = [];
addEventListener("error", (event) => errors.push(event.message));
addEventListener("load", () => {
  const table = document.querySelector("#results");
  const heading = (text) => [...table.querySelectorAll("th")].find((one) => one.textContent.trim() === text);
  const column = (text) => [...table.tHead.rows[0].cells].indexOf(heading(text));
  const shown = () => [...table.tBodies[0].rows].filter((row) => row.offsetHeight > 0);
  const values = (text) => shown().map((row) => row.cells[column(text)].textContent.trim());
  const click = (text) => heading(text).querySelector("button").click();
  const tools = document.querySelector('.tools[data-for="results"]');
  const type = (text) => {
    tools.querySelector("input").value = text;
    tools.querySelector("input").dispatchEvent(new Event("input", { bubbles: true }));
  };
  const choose = (value) => {
    tools.querySelector("select").value = value;
    tools.querySelector("select").dispatchEvent(new Event("change", { bubbles: true }));
  };
  const seen = { tools: tools.offsetHeight > 0, start: values("run"), selected: tools.querySelector("select").value };
  choose("run");
  seen.runs = values("run");
  click("AUROC"); seen.falling = values("AUROC"); seen.sorted = heading("AUROC").getAttribute("aria-sort");
  click("AUROC"); seen.rising = values("AUROC"); seen.turned = heading("AUROC").getAttribute("aria-sort");
  click("mask_ratio"); seen.ratios = values("mask_ratio"); seen.before = heading("AUROC").getAttribute("aria-sort");
  click("run"); seen.names = values("run");
  choose(""); type("SCREW"); seen.screws = values("category"); seen.count = tools.querySelector("output").textContent;
  type("screw 0.25"); seen.both = values("mask_ratio");
  type("nothing has this"); seen.none = shown().length;
  type(""); seen.all = shown().length;
  seen.images = [...document.images].map((image) => [image.complete, image.naturalWidth]);
  seen.drawings = [...document.querySelectorAll("details[open] svg, #ablation svg")].map((svg) => svg.clientWidth);
  seen.wide = document.documentElement.scrollWidth <= innerWidth;
  seen.fetched = performance.getEntriesByType("resource").map((one) => one.name).filter((name) => !/^data:/.test(name));
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
    found = collect([str(folder / "runs")])
    path = folder / "index.html"
    path.write_text(page.render(Report(found, reference.find([], found, None), 0.02), "Tried in a browser", 3, 4))
    return path


@pytest.fixture(scope="module")
def seen(html):
    """What the script found out."""
    probe = html.with_name("probe.html")
    probe.write_text(html.read_text().replace("<head>", f"<head><script>{SCRIPT}</script>", 1))
    found = re.search(r'<pre id="seen">(.*?)</pre>', browse(probe, html.parent, "--dump-dom"), re.DOTALL)
    assert found is not None, "the page's script did not come to its end"
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


def test_the_script_ran_without_an_error(seen):
    assert seen["errors"] == [] and seen["tools"]
    assert seen["fetched"] == []


def test_the_table_sorts(seen):
    assert seen["selected"] == "run" and seen["start"] == seen["runs"]  # 45 rows: at first a row a run
    assert seen["runs"] == [str(i) for i in range(12)]
    falling, rising = ([float(text[:5]) for text in seen[key] if text] for key in ("falling", "rising"))
    assert len(falling) == 11 and falling == sorted(falling, reverse=True) and rising == sorted(rising)
    assert seen["falling"][-1] == seen["rising"][-1] == ""  # the failed run stays last, whichever way
    assert (seen["sorted"], seen["turned"], seen["before"]) == ("descending", "ascending", None)
    ratios = list(map(float, seen["ratios"]))
    assert ratios == sorted(ratios, reverse=True)
    assert seen["names"] == [str(i) for i in range(12)]  # 10 comes after 9


def test_the_table_filters(seen):
    assert seen["screws"] == ["screw"] * 11 and seen["count"] == "11 of 45 rows"
    assert seen["both"] == ["0.25"] * 3
    assert seen["none"] == 0 and seen["all"] == 45


def test_pictures_and_drawings_are_shown(seen):
    assert len(seen["images"]) == 3 * 2 and all(complete and width > 0 for complete, width in seen["images"])
    assert len(seen["drawings"]) >= 7 and all(width > 100 for width in seen["drawings"])
    assert seen["wide"], "the page itself must not scroll sideways"


def test_a_screenshot_is_kept(html):
    path = html.with_name("report.png")
    browse(html, html.parent, f"--screenshot={path}")
    from PIL import Image

    with Image.open(path) as image:
        assert image.size == (1400, 2000)
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50  # not one blank area
    print(f"screenshot: {path}")
