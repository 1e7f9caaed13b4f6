"""Which runs are drawn side by side."""

import pytest
from makers import fake_run

from adlight.reports import figures, reference
from adlight.reports.collect import collect
from adlight.reports.summary import Report


def report_of(root, named=None):
    found = collect([str(root)])
    return Report(found, reference.find(named, found, None), 0.02)


def test_one_model_for_all_stands_beside_a_model_each(tmp_path):
    words = {"sweep": "categories", "model": "mae", "dataset": "mvtec"}
    fake_run(tmp_path / "all", draw=9, dataset__category="all", **words)
    for i, category in enumerate(("bottle", "screw")):
        fake_run(tmp_path / category, (category,), draw=i, dataset__category=category, **words)
    report = report_of(tmp_path)
    series = figures.series_of(report)
    assert {name: [run.name for run in group] for name, group in series.items()} == {
        "one model for all": ["all"],
        "a model each": ["bottle", "screw"],
    }
    auroc = {(run.name, row.category): row.metrics["auroc"] for run in report.runs for row in run.rows}
    for name, of_bottle, of_screw in (("one model for all", "all", "all"), ("a model each", "bottle", "screw")):
        spreads, published = figures.by_category(report, series[name], "auroc")
        assert spreads["bottle"].value == auroc[of_bottle, "bottle"]  # and no mean of both models
        assert spreads["screw"].value == auroc[of_screw, "screw"]
        assert published == {"bottle": 0.993, "screw": 0.804}
    (drawing,) = figures.categories(report)
    assert "one model for all" in drawing.svg and "a model each" in drawing.svg and "are drawn" not in drawing.note


def test_no_series_is_lost_to_an_equal_label(tmp_path):
    for i in range(8):  # five settings are equal in words in all of them, those behind tell them apart
        words = {f"model__{name}": f"{name}{i % 2}" for name in "abcdef"}
        fake_run(tmp_path / str(i), ("x", "y"), draw=i, **words, model__z=i)
    report = report_of(tmp_path)
    series = figures.series_of(report)
    assert len(series) == 8 and [group[0].name for group in series.values()] == list("01234567")
    assert list(series)[3] == "a=a1, b=b1, c=c1, d=d1, e=e1, f=f1 and 1 more (3)"
    (drawing,) = figures.categories(report)
    assert drawing.note.endswith("The first 6 of 8 series are drawn.")


def test_up_to_six_settings_are_named(tmp_path):
    for i in range(2):
        fake_run(tmp_path / str(i), draw=i, **{f"model__{name}": i for name in "abcdef"})
    assert list(figures.series_of(report_of(tmp_path))) == [
        "a=0, b=0, c=0, d=0, e=0, f=0",
        "a=1, b=1, c=1, d=1, e=1, f=1",
    ]


def test_a_histogram_has_its_runs_name_only_where_it_needs_it(tmp_path):
    for name, category in (("0", "bottle"), ("1", "screw"), ("2", "screw")):
        fake_run(tmp_path / name, (category,), dataset__category=category)
    ((_, cells),) = figures.score_groups(report_of(tmp_path))
    assert [cell.title for cell in cells] == ["bottle", "screw (1)", "screw (2)"]
    ((_, cells),) = figures.score_groups(report_of(tmp_path / "[12]"))
    assert [cell.title for cell in cells] == ["1", "2"]


@pytest.mark.parametrize("encoders", [("separate", "joint"), ("separate",)])
def test_an_ablation_has_a_heat_map_an_encoder(tmp_path, encoders):
    for encoder in encoders:
        for ratio in (0.5, 0.75):
            words = {"model__mask_ratio": ratio, "model__network__encoder": encoder, "sweep": "mae_ablation"}
            fake_run(tmp_path / f"{encoder}{ratio}", **words)
    found = figures.ablations(report_of(tmp_path))
    assert [drawing.title for drawing in found] == (["encoder=joint", "encoder=separate"] if encoders[1:] else ["mae"])
    assert all(drawing.note.startswith("2 cells.") for drawing in found)
    report = report_of(tmp_path)
    assert figures.by_category(report, report.runs, "auroc")[1] == {}  # a cell's number is no category's
