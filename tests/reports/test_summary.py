"""results.csv and results.md: every number, to the digit."""

import csv
import io
import json

import pytest
from makers import fake_run

from adlight.reports import reference
from adlight.reports.collect import collect
from adlight.reports.summary import ORDER, Report, figure, markdown, overview, results_csv


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Two finished runs that differ in the mask ratio, and a failed one."""
    root = tmp_path_factory.mktemp("summary")
    fake_run(root / "0", model__mask_ratio=0.5, draw=1)
    fake_run(root / "1", model__mask_ratio=0.75, draw=2)
    fake_run(root / "2", model__mask_ratio=0.9, finished=False, error="too, large\n")
    (root / "paper.csv").write_text("category,x\nbottle,0.7\nscrew,0.8\n")
    found = collect([str(root)])
    return Report(found, reference.find([str(root / "paper.csv")], found, None), 0.02)


def test_results_csv(report):
    rows = list(csv.DictReader(io.StringIO(results_csv(report))))
    assert [(row["run"], row["state"], row["level"], row["category"]) for row in rows] == [
        *((run, "finished", *of) for run in "01" for of in (
            ("category", "bottle"), ("category", "screw"), ("mean", "mean of 2"), ("pooled", "pooled"))),
        ("2", "failed", "", ""),
    ]  # fmt: skip
    content = json.loads((report.runs[1].path / "metrics.json").read_text())
    for row, table in zip(rows[4:7], [*content["categories"].values(), content], strict=True):
        known = {name: value for name, value in content["categories"]["bottle"].items() if name in ORDER}
        assert {"auroc", "f1_calibrated", "precision_at_f1_max"} <= known.keys()
        assert all(row[name] == (repr(table[name]) if name in table else "") for name in known)
    bottle, _, mean = rows[4:7]
    low, high = (content["categories"]["bottle"][f"auroc_{end}"] for end in ("lower", "upper"))
    assert (bottle["auroc_low"], bottle["auroc_high"]) == (repr(low), repr(high))
    assert (bottle["normal_images"], bottle["anomalous_images"], bottle["threshold"]) == ("10", "10", "2.0")
    assert (bottle["epochs"], bottle["seconds"], bottle["generator_steps"]) == ("3", "12.5", "")
    assert (bottle["reference_auroc"], float(mean["reference_auroc"])) == ("0.7", pytest.approx(0.75))
    assert [row["model.mask_ratio"] for row in rows[::4]] == ["0.5", "0.75", "0.9"]
    assert rows[-1]["reason"] == "too, large" and rows[-1]["auroc"] == ""
    assert list(rows[0])[:8] == ["run", "state", "model", "dataset", "normal", "seed", "level", "category"]


def test_results_md(report):
    text = markdown(report, "a title")
    row = report.runs[0].headline
    assert text.startswith("# a title\n\n2 finished, 1 failed\n\n| run | mask_ratio | category | AUROC |")
    low, high = row.intervals["auroc"]
    assert f"| 0 | 0.5 | mean of 2 | {row.metrics['auroc']:.3f} ± {(high - low) / 2:.3f} |" in text
    assert f"{row.metrics['trivial_f1']:.3f} | 0.750 |" in text  # the paper's mean of both
    assert "| 2 | 0.9 | failed |  |" in text and "* 2: failed. too, large" in text
    assert figure(row, "aupro") == ""


def test_a_mean_is_beside_what_its_own_runs_are_beside(tmp_path):
    for digit in (3, 7):
        words = {"dataset": "mnist", "dataset__normal": digit}
        fake_run(tmp_path / f"gan{digit}", (str(digit),), model="gan", experiment="gan_mnist", **words)
        fake_run(tmp_path / f"knn{digit}", (str(digit),), model="knn", **words)
    found = collect([str(tmp_path)])
    whole = Report(found, reference.find(None, found, None), 0.02)
    assert {one.label: whole.mean_reference(one, "f1_max") for one in whole.means} == {
        "gan": pytest.approx((0.9909 + 0.9779) / 2),
        "knn": None,
    }


def test_no_two_columns_have_one_name(tmp_path):
    for category in ("bottle", "screw"):
        fake_run(tmp_path / category, (category,), dataset__category=category)
    found = collect([str(tmp_path)])
    columns, lines = overview(Report(found, {0: [], 1: []}, 0.02), ("auroc",))
    assert columns == ["run", "dataset.category", "category", "AUROC"] and lines[0][:3] == ["bottle"] * 3


def test_names_with_bars_stay_in_their_column(tmp_path):
    fake_run(tmp_path / "a|b", finished=False)
    found = collect([str(tmp_path / "a|b")])
    assert "| a\\|b |" in markdown(Report(found, {0: []}, 0.02), "x")
