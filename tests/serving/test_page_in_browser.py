"""The page in a real browser, without a screen: images are dropped, thresholds moved, results saved."""

import base64
import io
import json
import shutil
import time

import numpy as np
import pytest
from browser import BROWSER, DRIVER, Browser
from PIL import Image

from adlight.detection.regions import find_regions
from adlight.detector import Detector
from adlight.metrics.thresholds import Threshold

pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None,
    reason="no browser here: install Debian's chromium and chromium-driver (apt-get install chromium chromium-driver)",
)
DONE = "!document.querySelector('#count').textContent.includes('to go') && document.querySelectorAll('#list li').length"
BAD = "<img src=x onerror=document.title='hacked'>.png"
# files are dropped on the page as a user's would be
DROP = """
const [texts, names] = arguments, data = new DataTransfer();
texts.forEach((text, i) => data.items.add(
  new File([Uint8Array.from(atob(text), (one) => one.charCodeAt(0))], names[i], { type: "image/png" })));
document.querySelector("#empty").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
"""
# what the page says of the chosen image
STATE = """
const find = (selector) => document.querySelector(selector);
const SIDE = 32; // of the map
const pixels = (canvas) => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
const middle = (canvas, i) => [(i % SIDE) + 0.5, Math.floor(i / SIDE) + 0.5].map((one, axis) =>
  Math.floor((one * (axis ? canvas.height : canvas.width)) / SIDE));
const sample = (canvas) => { // the middle of each of the map's pixels
  const data = pixels(canvas), places = Array.from({ length: SIDE ** 2 }, (_, i) => middle(canvas, i));
  return places.map(([x, y]) => data[4 * (y * canvas.width + x)]);
};
const canvases = [...document.querySelectorAll("#panes canvas")];
return { badge: find(".badge").textContent, name: find("h1").textContent, sentence: find("#sentence").textContent,
  captions: [...document.querySelectorAll("#panes figcaption")].map((one) => one.textContent),
  sizes: canvases.map((one) => [one.width, one.height]), mask: canvases.length === 3 ? sample(canvases[2]) : null,
  heat: canvases.length ? sample(canvases[canvases.length === 3 ? 1 : 0]) : null,
  requests: performance.getEntriesByType("resource").map((one) => one.name),
  wide: document.documentElement.scrollWidth <= innerWidth };
"""
SET = """
const [selector, value] = arguments, field = document.querySelector(selector);
field.value = value;
for (const kind of ["input", "change"]) field.dispatchEvent(new Event(kind, { bubbles: true }));
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture
def page(browser, served):
    browser.open(served.url)
    browser.wait("document.querySelector('#accepted').textContent")
    browser.errors()  # those of another page
    browser.run("document.querySelector('[name=category]').value = 'screw'")
    return browser


def drop(page, *paths):
    page.run(DROP, [base64.b64encode(path.read_bytes()).decode() for path in paths], [path.name for path in paths])
    page.wait(f"{DONE} === {len(paths)}")


def saved(page, button, name):
    """What a button saves as a file."""
    page.run(f"document.querySelector({button!r}).click()")
    path, end = page.folder / name, time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    content = path.read_bytes()
    path.unlink()
    return content


def same(answer, prediction, name):
    wanted = {**prediction.as_dict(), "path": name}
    numbers = {key: value for key, value in wanted.items() if isinstance(value, float)}
    assert {key: answer.pop(key) for key in numbers} == pytest.approx(numbers, rel=1e-5)
    assert answer == {key: value for key, value in wanted.items() if key not in numbers}


def test_regions_are_those_of_the_detector(page):
    """`findRegions` of the page marks what `find_regions` of Python does, whatever a region is said to be."""
    rng = np.random.default_rng(0)
    pixel = rng.random((20, 27), np.float32)
    call = "const [values, ...rest] = arguments; return findRegions(values, 20, 27, ...rest).flat()"
    for level, region, least, closing in ((0.97, None, 0, 0), (0.97, None, 0, 2.5), (0.9, 0.95, 4, 1), (2, None, 0, 3)):
        wanted = find_regions(pixel, Threshold(0.5, level, region=region, source=""), least, closing)
        found = page.run(call, pixel.ravel().tolist(), level, region, least, closing)
        assert sorted(found) == wanted.ravel().nonzero()[0].tolist()


def test_an_image_is_dropped_and_its_thresholds_are_moved(page, served, tiny_run):
    """At every place of the sliders the page says what `Detector` says with that threshold, without a request."""
    path = served.images["screw"][4]
    detector = Detector.load(tiny_run[0], device="cpu", category="screw")
    drop(page, path)
    asked = len(page.run(STATE)["requests"])
    (prediction,) = detector([path])
    high, low = 1.5 * prediction.score, 0.5 * prediction.score
    pixel = float(np.quantile(prediction.anomaly_map, 0.8))
    for threshold, pixel_threshold in ((None, None), (high, None), (low, None), (low, pixel)):
        if threshold is not None:
            page.run(SET, "#threshold" if threshold == low else "[aria-label^='threshold of the image']", threshold)
            detector.threshold = threshold
        if pixel_threshold is not None:
            page.run(SET, "#pixel", pixel_threshold)
            detector.pixel_threshold = pixel_threshold
        (wanted,) = detector([path])
        state = page.run(STATE)
        assert state["badge"] == ("anomalous" if wanted.anomalous else "normal") and state["name"] == path.name
        assert np.array_equal(np.reshape(state["mask"], (32, 32)) > 127, wanted.mask)  # an image in the map's size
        count = len(wanted.boxes)
        assert state["captions"][0] == f"Image, {count} {'box' if count == 1 else 'boxes'}"
        answer = json.loads(saved(page, "[name=json]", f"{path.stem}.json"))
        same(answer, wanted, path.name)
    page.run("document.querySelector('[name=reset]').click()")
    assert "calibrated for screw" in page.run(STATE)["sentence"]
    assert len(page.run(STATE)["requests"]) == asked
    image = Image.open(io.BytesIO(saved(page, "[name=png]", f"{path.stem}.png")))
    assert image.width > 3 * 512 and len(image.convert("RGB").getcolors(1 << 24)) > 50
    assert not page.errors()


def test_the_heat_map_fades(page, served):
    drop(page, served.images["screw"][0])
    before = page.run(STATE)["heat"]
    page.run(SET, "#opacity", 0)
    image = page.run(STATE)["heat"]
    page.run(SET, "#opacity", 1)
    heat = page.run(STATE)["heat"]
    assert before != image != heat
    page.run("document.querySelector('[name=view][value=layers]').click()")
    assert len(page.run(STATE)["sizes"]) == 1
    layers = page.run(STATE)["heat"]
    page.run("document.querySelector('.layers [name=heat]').click()")
    assert page.run(STATE)["heat"] != layers


def test_names_and_broken_files_do_no_harm(page, served, tmp_path):
    good, bad, scan = served.images["bottle"][0], tmp_path / BAD, tmp_path / "scan.tif"
    bad.write_bytes(good.read_bytes()[:80])
    Image.open(good).resize((90, 60)).save(scan)
    page.attach("input[name=files]", good, bad, scan)
    page.wait(f"{DONE} === 3")
    counts = page.run("return document.querySelector('#count').textContent")
    assert counts.endswith("1 not read")
    page.run("document.querySelectorAll('#list button')[1].click()")
    state = page.run(STATE)
    assert state["badge"] == "not read" and state["name"] == BAD and "truncated" in state["sentence"]
    assert page.run("return document.title") == "tiny: adlight" and not page.run("return document.images.length")
    page.run("document.querySelectorAll('#list button')[2].click()")
    assert page.run(STATE)["sizes"][0] == [512, 341]  # a TIFF, which browsers cannot read
    answers = json.loads(saved(page, "#save-all", "predictions.json"))
    assert ["error" in one for one in answers] == [False, True, False]
    assert all("422" in line for line in page.errors()), page.errors()


def test_one_of_many_images_is_shown_again(page, served):
    names = [f"{i}.png" for i in range(70)]
    image = base64.b64encode(served.images["screw"][0].read_bytes()).decode()
    page.run(DROP, [image] * 70, names)
    page.wait(f"{DONE} === 70")
    page.run("document.querySelectorAll('#list button')[1].click()")  # among the first to be forgotten
    page.wait("document.querySelectorAll('#panes canvas').length === 3")
    assert page.run(STATE)["name"] == "1.png" and max(page.run(STATE)["heat"]) > 0 and not page.errors()


def test_another_category_asks_again(page, served):
    drop(page, served.images["screw"][0])
    assert "screw" in page.run(STATE)["sentence"]
    page.run(SET, "[name=category]", "bottle")
    page.wait("document.querySelector('#sentence').textContent.includes('bottle')")


def told(page, start):
    page.wait(f"document.querySelector('#told').textContent.startsWith({start!r})")
    return page.run("return document.querySelector('#told').textContent")


@pytest.mark.parametrize("width", [1400, 400])
def test_the_inspector_says_what_is_right_and_draws_the_defect(browser, labelling, width):
    """What the mouse has drawn is the mask beside the run, in the image's own size."""
    folder = labelling.service.labels.folder
    shutil.rmtree(folder.path, ignore_errors=True)
    browser.resize(width, 1000)
    browser.open(labelling.url)
    browser.wait("document.querySelector('#kept').textContent")
    browser.errors()
    browser.run("document.querySelector('[name=category]').value = 'screw'")
    drop(browser, labelling.images["screw"][0])
    browser.run("document.querySelector('#label [name=draw]').click(); document.querySelector('[name=tool]').click()")
    corner = "const canvas = document.querySelector('#drawing canvas'); canvas.scrollIntoView({ block: 'center' });"
    box = browser.run(f"{corner} const box = canvas.getBoundingClientRect(); return [box.left, box.top, box.width]")

    def at(x, y):
        return box[0] + x / 32 * box[2], box[1] + y / 32 * box[2]

    browser.drag(at(2, 2), at(28, 28))  # by the brush, and undone
    browser.run("document.querySelector('#label [name=undo]').click()")
    assert browser.run("return document.querySelector('#label [name=keep]').disabled")
    browser.run("document.querySelector('[name=tool][value=box]').click()")
    browser.drag(at(20, 24), at(12, 10))
    browser.run("document.querySelector('[name=tool][value=brush]').click()")
    browser.drag(at(4, 28), at(8, 28))
    assert browser.run(STATE)["wide"], "the page itself must not scroll sideways"
    print(f"screenshot: {browser.screenshot(browser.folder / f'labelling-{width}.png')}")
    browser.run("document.querySelector('#label [name=keep]').click()")
    assert "anomalous" in told(browser, "Kept")
    (kept,) = folder.read()
    with open(kept.path, "rb") as file:
        assert file.read() == labelling.images["screw"][0].read_bytes() and kept.category == "screw"
    mask = np.asarray(Image.open(kept.mask)) > 0
    assert mask.shape == (32, 32) and mask[11:23, 13:19].all() and mask[28, 4:8].all()
    rest = mask.copy()
    rest[9:25, 11:21] = rest[27:30, 3:10] = False
    assert not rest.any()
    decision = browser.run(STATE)["badge"]
    browser.run(f"document.querySelector('#label [name={'wrong' if decision == 'anomalous' else 'right'}]').click()")
    assert "before" in told(browser, "Kept as normal") and folder.read()[0].label == 0
    assert "1 normal" in browser.run("return document.querySelector('#kept').textContent") and not browser.errors()


def test_a_server_without_labels_says_so(page, served):
    drop(page, served.images["screw"][0])
    assert page.run("return document.querySelector('#label').hidden")
    assert "max_labels" in page.run("return document.querySelector('#storage').textContent")


def test_a_token_is_taken_from_the_address_or_asked_for(browser, with_token):
    browser.open(f"{with_token.url}")
    browser.wait("!document.querySelector('#login').hidden")
    script = "const form = document.querySelector('#login'); form.elements.token.value = arguments[0]; form[1].click()"
    browser.run(script, "wrong")
    browser.run(script, "a token of our own")
    browser.wait("document.querySelector('#login').hidden && document.querySelector('#name').textContent === 'tiny'")
    browser.run("sessionStorage.clear()")
    browser.open("about:blank")
    browser.open(f"{with_token.url}#token=a%20token%20of%20our%20own")
    browser.wait("document.querySelector('#name').textContent === 'tiny'")
    assert browser.run("return location.href") == with_token.url
    browser.errors()


@pytest.mark.parametrize("width", [1400, 400])
def test_a_screenshot_is_kept(page, served, width):
    page.resize(width, 1000)
    drop(page, *served.images["screw"][:5])
    path = page.screenshot(page.folder / f"served-{width}.png")
    assert page.run(STATE)["wide"], "the page itself must not scroll sideways"
    with Image.open(path) as image:
        assert image.width == width and len(image.convert("RGB").getcolors(1 << 24)) > 50
    print(f"screenshot: {path}")
