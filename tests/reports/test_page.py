"""The page's HTML: self-contained, every number to the digit, nothing from a run is taken for markup."""

import json
import re
from html.parser import HTMLParser

import pytest
from makers import fake_run, write_image

from adlight.reports import page, reference
from adlight.reports.collect import collect
from adlight.reports.grids import verdict
from adlight.reports.summary import Report


class Reader(HTMLParser):
    """Collects tags with their attributes, and the fields of each table."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.tables, self.open = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag == "table":
            self.rows = self.tables.setdefault(attributes["id"], [])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append({"text": "", **attributes})
        if tag not in ("meta", "input", "img", "path", "use"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1]["text"] += data


def rendered(root, detailed=8, each=4, named=None):
    found = collect([str(root)])
    return page.render(Report(found, reference.find(named, found, None), 0.02), "a <title>", detailed, each)


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """A page over an ablation of two cells with two seeds, a failed run, and three digits."""
    root = tmp_path_factory.mktemp("page")
    for i, (ratio, seed) in enumerate(((0.5, 0), (0.5, 1), (0.75, 0), (0.75, 1))):
        fake_run(root / f"{i}", model__mask_ratio=ratio, seed=seed, sweep="mae_ablation")
    fake_run(root / "4", finished=False, error="<b>no memory</b>")
    for digit in (3, 5, 8):
        words = {"model": "gan", "dataset": "mnist", "dataset__normal": digit, "experiment": "gan_mnist"}
        fake_run(root / "digits" / str(digit), (str(digit),), draw=digit, **words)
    return root, rendered(root, detailed=2)


def test_all_sections_are_there(html):
    ids = [attributes["id"] for tag, attributes in Reader(html[1]).tags if tag == "section"]
    sections = ["result", "mean", "ablation", "by-category", "by-class", "scores", "pictures"]
    assert ids == [*sections, "settings-that-differ", "origin"]
    assert html[1].count("</svg>") == html[1].count("<svg") == 3 + 2 * 2


def test_nothing_is_fetched(html):
    for tag, attributes in Reader(html[1]).tags:
        assert tag != "link" and not (tag == "script" and "src" in attributes)
        for key in ("src", "href", "xlink:href", "srcset"):
            assert (attributes.get(key) or "#").startswith(("#", "data:"))
    assert "@import" not in html[1] and not re.search(r"url\((?!#)", html[1])


def test_ids_are_unique(html):
    ids = [attributes["id"] for _, attributes in Reader(html[1]).tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_numbers_are_those_of_the_run(html):
    root, text = html
    head, *rows = Reader(text).tables["results"]
    column = [cell["text"] for cell in head].index("AUROC")
    of_run = {(row[0]["text"], row[[c["text"] for c in head].index("category")]["text"]): row for row in rows}
    content = json.loads((root / "0" / "metrics.json").read_text())
    for name, table in [*content["categories"].items(), ("mean of 2", content)]:
        cell = of_run["0", name][column]
        assert cell["data-value"] == repr(table["auroc"]) and cell["text"].startswith(f"{table['auroc']:.3f} ± ")
    paper, difference = of_run["0", "mean of 2"][column + 1 : column + 3]
    assert paper["data-value"] == "0.86" and float(difference["data-value"]) == content["auroc"] - 0.86
    assert difference["class"] == verdict(content["auroc"] - 0.86, 0.02)
    assert of_run["0", "bottle"][column + 1]["text"] == ""  # the article's cell is a mean


def test_verdicts():
    assert [verdict(value, 0.02) for value in (0.02, -0.02, 0.021, -0.03)] == ["near", "near", "above", "below"]


def test_text_from_runs_is_no_markup(html, tmp_path):
    assert "<b>no memory</b>" not in html[1] and "&lt;b&gt;no memory&lt;/b&gt;" in html[1]
    assert "<title>a &lt;title&gt;</title>" in html[1]
    fake_run(tmp_path / "<i>'\"&", ("<script>alert(1)</script>", "$\\bad$"), model__mask_ratio="<u>")
    fake_run(tmp_path / "b", ("x",))
    text = rendered(tmp_path)
    assert not {tag for tag, _ in Reader(text).tags} & {"i", "u"} and text.count("<script") == 1


def test_pictures_are_limited_in_number_size_and_sum(tmp_path, monkeypatch):
    for i in range(3):
        fake_run(tmp_path / str(i), ("a", "b", "c"))
    write_image(tmp_path / "0" / "panels" / "a.png", size=2000)
    (tmp_path / "1" / "panels" / "a.png").write_text("no picture")
    found = collect([str(tmp_path)])
    shown, left = page.pictures(found, 2, 2)
    assert [[picture.alt for picture in of] for _, of in shown] == [["0: a", "0: b"], ["1: b"]] and left == 6
    assert (shown[0][1][0].width, shown[0][1][0].height) == (page.WIDEST, page.WIDEST)
    monkeypatch.setattr(page, "MEGABYTES", 0.001)  # the first is larger: no room for another
    shown, left = page.pictures(found, 3, 3)
    assert [len(of) for _, of in shown] == [1] and left == 8
    assert page.pictures([], 3, 3) == ([], 0)


def test_samples_of_a_gan_take_no_panels_place(tmp_path):
    run = fake_run(tmp_path / "0", ("toothbrush",))
    for epoch in (5, 10):
        write_image(run / "panels" / f"samples-{epoch:04d}.png")
    ((_, shown),), left = page.pictures(collect([str(tmp_path)]), 1, 4)
    assert [picture.alt for picture in shown] == ["0: toothbrush"] and left == 0


def test_defect_types_have_a_table(tmp_path, monkeypatch):
    hole = {"normal": 3, "anomalous": 2, "auroc": 0.75, "ap": 0.5, "recall_calibrated": 1.0}
    alone = {"normal": 0, "anomalous": 1, "recall_calibrated": 0.25}
    for name, defects in (("0", {"bottle": {"hole": hole, "<cut>": alone}}), ("1", None), ("2", {"bottle": "damaged"})):
        path = fake_run(tmp_path / name) / "metrics.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"defects": defects}))
    text = rendered(tmp_path)
    head, *rows = Reader(text).tables["defect-types"]
    assert [cell["text"] for cell in head][:4] == ["run", "category", "defect", "images"]
    assert [[cell["text"] for cell in row] for row in rows] == [
        ["0", "bottle", "hole", "3 + 2", "0.750", "0.500", "1.000"],
        ["0", "bottle", "<cut>", "0 + 1", "", "", "0.250"],
    ]
    assert "<details open>\n<summary>2 rows</summary>" in text and "<cut>" not in text
    monkeypatch.setattr(page, "DEFECTS", 1)
    assert "1 more have no place here: see the runs' defects.csv" in rendered(tmp_path)


def test_a_page_without_any_result(tmp_path):
    fake_run(tmp_path / "0", finished=False)
    reader = Reader(rendered(tmp_path))
    assert [attributes["id"] for tag, attributes in reader.tags if tag == "section"] == ["result", "origin"]
    assert "unfinished" in [cell["text"] for cell in reader.tables["results"][1]]


def test_what_is_not_drawn_is_said(html):
    assert "3 more not drawn: raise detailed=" in html[1] and "7 more have no place here" in html[1]
