"""The page's HTML: self-contained, every number to the digit, nothing from a run is taken for markup."""

import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from makers import fake_run

from adlight.reports import page
from adlight.reports.collect import collect
from adlight.reports.grouping import average_runs
from adlight.reports.monitoring import Monitoring
from adlight.reports.reference import compare
from adlight.reports.tables import results_csv, results_markdown

NONE = pd.DataFrame()


class Reader(HTMLParser):
    """Collects tags with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def rendered(root, detailed=8, each=4, named=None):
    found = compare(collect([str(root)]), named, None)
    words = "a <title>", 0.02, detailed, each, root / "report"
    return page.render(found, average_runs(found.results), *words, Monitoring())


def viewer(text):
    """What the image viewer is given."""
    return re.search(r'<script type="application/json" id="viewer-data">(.*?)</script>', text)[1]


def table(text, name):
    """The headings and rows that the browser gets for a table; words that sort in an order of ours as these."""
    options = text[text.index(f'document.querySelectorAll("#{name}:not') :]
    line = {
        key: re.search(rf'^ *"{key}": (.*?),?$', options, re.MULTILINE)
        for key in ("data_json", "table_html", "columnDefs")
    }
    headings = re.findall(r"<th>(.*?)</th>", json.loads(line["table_html"][1]))
    rows = json.loads(json.loads(line["data_json"][1]))
    for one in json.loads(line["columnDefs"][1]) if line["columnDefs"] else ():
        if words := re.search(r"var categories = (.*?); return", one.get("render", "")):
            for row in rows:
                row[one["targets"]] = [None, *json.loads(words[1])][row[one["targets"]]]
    return headings, rows


def sections(text):
    return [of["id"].removesuffix("-section") for tag, of in Reader(text).tags if tag == "section"]


@pytest.fixture(scope="module")
def html(tmp_path_factory, published_sets_are_small):
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
    expected = ["results", "viewer", "decisions", "categories", "means", "ablation", "bars", "scores", "pictures"]
    expected += ["settings", "origins"]
    assert sections(html[1]) == expected
    assert html[1].count("data:image/svg+xml;base64,") == 3 + 2 * 2
    assert "experiments/gan_mnist/expected.csv, experiments/mae_ablation/expected.csv" in html[1]


def test_nothing_is_fetched_but_pictures_of_the_runs(html):
    root, text = html
    for tag, attributes in Reader(text).tags:
        assert tag not in ("link", "iframe") and not (tag == "script" and "src" in attributes)
        assert not {"xlink:href", "srcset"} & set(attributes)
        if not (source := attributes.get("src", "data:")).startswith("data:"):
            assert (root / "report" / source).resolve().is_file()
    assert len(text) < 2e6


def test_a_run_links_its_folder_panels_and_log(tmp_path):
    fake_run(tmp_path / "a b")
    (fake_run(tmp_path / "c", finished=False, error="x") / "train.log").write_text("")
    links = json.loads(re.search(r"const LINKS = (.*);", rendered(tmp_path))[1])
    assert links == {
        "a b": {"run": "../a%20b", "panels": "../a%20b/panels"},
        "c": {"run": "../c", "log": "../c/train.log"},
    }


def test_validation_chooses(tmp_path):
    for name, validation, shift in (("0", 0.9, 0), ("1", 0.8, 3), ("2", None, 3)):
        path = fake_run(tmp_path / name, shift=shift) / "metrics.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"validation": {"val/auroc": validation}}))
    text = rendered(tmp_path, detailed=1, each=0)
    headings, rows = table(text, "results")
    assert headings.index("val/auroc") < headings.index("AUROC")
    assert "chooses: 0." in text and json.loads(viewer(text))["first"] == 0
    assert [row[headings.index("val/auroc")] for row in rows] == [0.9, 0.8, "___NaN___"]
    csv, markdown = (
        make(collect([str(tmp_path)])) for make in (results_csv, lambda of: results_markdown(of, NONE, ""))
    )
    assert csv.split(",auroc,")[0].endswith(",val/auroc") and "| val/auroc | AUROC |" in markdown


def test_ids_are_unique(html):
    ids = [attributes["id"] for _, attributes in Reader(html[1]).tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_numbers_are_those_of_the_run(html):
    root, text = html
    content = json.loads((root / "0" / "metrics.json").read_text())
    headings, rows = table(text, "results")
    at = headings.index("AUROC")
    mine = next(row for row in rows if row[0] == "0")
    assert mine[at : at + 3] == [content["auroc"], content["auroc_lower"], content["auroc_upper"]]
    assert headings[at + 3 : at + 5] == ["paper", "ours - paper"]
    assert mine[at + 3 : at + 5] == [0.86, content["auroc"] - 0.86]
    failed = next(row for row in rows if row[0] == "4")
    assert failed[headings.index("status")] == "failed" and failed[at] == "___NaN___"
    headings, rows = table(text, "categories")
    of = {(row[0], row[headings.index("category")]): row[headings.index("AUROC")] for row in rows}
    assert of["0", "bottle"] == content["categories"]["bottle"]["auroc"] and ("0", "pooled") in of
    assert "paper" not in headings  # the article's cell is a mean


def test_numbers_of_another_protocol_have_no_difference(tmp_path):
    fake_run(tmp_path / "0", sweep="mae_ablation", dataset__test_limit=10)
    headings, (row,) = table(rendered(tmp_path), "results")
    assert row[headings.index("paper")] == 0.895 and "ours - paper" not in headings
    assert row[headings.index("another protocol")] == "test_limit 10"


def test_decisions_are_counted(tmp_path):
    run = fake_run(tmp_path / "0")
    predictions = collect([str(run)]).predictions
    headings, rows = table(rendered(tmp_path), "decisions")
    for row in rows:
        of = predictions[predictions["category"] == row[1]]
        called = of["score"] > of["threshold"]
        found, alarms = sum(called & (of["label"] == 1)), sum(called & (of["label"] == 0))
        assert row[2:6] == [found, 10 - found, alarms, 10 - alarms]
        assert row[6:] == pytest.approx([found / (found + alarms), found / 10, alarms / 10])
    assert headings[2:] == ["found", "missed", "false alarms", "passed", "precision", "recall", "FPR"]


def test_text_from_runs_is_no_markup(html, tmp_path):
    assert "<b>no memory</b>" not in html[1] and "&lt;b&gt;no memory&lt;/b&gt;" in html[1]
    assert "<title>a &lt;title&gt;</title>" in html[1]
    bad = "</script><script>alert(1)</script>"
    fake_run(tmp_path / "<i>'\"&", (bad, "$\\bad$"), model__mask_ratio="<u>", **{"model__</script>": 1}, draw=1)
    fake_run(tmp_path / "b", ("x", "y"), seed=1, error=bad, finished=False)
    text = rendered(tmp_path)
    assert not {tag for tag, _ in Reader(text).tags} & {"i", "u"}
    assert "<script>alert" not in text and "alert(1)</script>" not in text and "model.</script>" not in text


def test_defect_types_have_a_table(tmp_path):
    hole = {"normal": 3, "anomalous": 2, "auroc": 0.75, "ap": 0.5, "recall_calibrated": 1.0}
    alone = {"normal": 0, "anomalous": 1, "recall_calibrated": 0.25}
    for name, defects in (("0", {"bottle": {"hole": hole, "<cut>": alone}}), ("1", None)):
        path = fake_run(tmp_path / name) / "metrics.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"defects": defects}))
    text = rendered(tmp_path)
    headings, rows = table(text, "defects")
    assert headings == ["name", "category", "defect", "images", "AUROC", "AP", "recall at threshold"]
    assert rows == [
        ["0", "bottle", "hole", "3 + 2", 0.75, 0.5, 1.0],
        ["0", "bottle", "&lt;cut&gt;", "0 + 1", "___NaN___", "___NaN___", 0.25],
    ]
    assert "<cut>" not in text


def test_long_tables_are_folded_and_have_pages(tmp_path, monkeypatch):
    fake_run(tmp_path / "0")
    assert "<details open><summary>3 rows</summary>" in rendered(tmp_path)
    monkeypatch.setattr(page, "OPEN", 2)
    monkeypatch.setattr(page, "PAGED", 2)
    text = rendered(tmp_path)
    assert "<details><summary>3 rows</summary>" in text and '"paging": true' in text


def test_a_page_without_any_result(tmp_path):
    fake_run(tmp_path / "0", finished=False)
    text = rendered(tmp_path)
    assert sections(text) == ["results", "origins"]
    headings, rows = table(text, "results")
    assert rows[0][headings.index("status")] == "unfinished"


def test_what_is_not_drawn_is_said(html):
    assert "3 more not drawn: raise detailed=" in html[1] and "7 more have no place here" in html[1]
