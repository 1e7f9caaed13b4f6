"""Runs that belong together, what they are called, and means over seeds and over runs of a category each."""

from statistics import fmean, stdev

import pytest
from makers import fake_run

from adlight.reports.collect import CLASS_KEYS, collect
from adlight.reports.groups import MISSING, alike, common_labels, differences, means, short_keys, shown


def test_settings_that_differ(tmp_path):
    fake_run(tmp_path / "a", finished=False, model__x=[1, 2], model__same={"y": None})
    fake_run(tmp_path / "b", finished=False, model__x=[1, 3], model__same={"y": None}, trainer__x=True, seed=1)
    found = differences(collect([str(tmp_path)]))
    assert found == {"seed": [0, 1], "model.x": [[1, 2], [1, 3]], "trainer.x": [MISSING, True]}
    assert short_keys(list(found)) == {"seed": "seed", "model.x": "model.x", "trainer.x": "trainer.x"}
    assert [shown(value) for value in (True, None, 1, 0.75, [1, 2], "a")] == [
        "true",
        "null",
        "1",
        "0.75",
        "[1, 2]",
        "a",
    ]


def test_means_over_seeds_and_classes(tmp_path):
    places = [(seed, digit) for seed in (0, 1, 2) for digit in (3, 7)]
    for seed, digit in places:
        fake_run(tmp_path / f"{seed}{digit}", (str(digit),), seed=seed, draw=digit, dataset__normal=digit)
    found = collect([str(tmp_path)])
    auroc = {place: run.rows[0].metrics["auroc"] for place, run in zip(places, found, strict=True)}
    three, seven, both = means(found)
    assert (three.category, seven.category, both.category, both.of) == ("3", "7", "mean of 2", ["3", "7"])
    assert three.seeds == ["0", "1", "2"]
    values = [auroc[seed, 3] for seed in (0, 1, 2)]
    assert three.metrics["auroc"] == pytest.approx((fmean(values), stdev(values)), abs=1e-12)
    values = [fmean([auroc[seed, 3], auroc[seed, 7]]) for seed in (0, 1, 2)]
    assert both.metrics["auroc"] == pytest.approx((fmean(values), stdev(values)), abs=1e-12)


def test_one_seed_has_no_deviation(tmp_path):
    for digit in (3, 7):
        fake_run(tmp_path / str(digit), (str(digit),), dataset__normal=digit)
    (both,) = means(collect([str(tmp_path)]))
    assert both.metrics["auroc"][1] is None and both.seeds == ["0"]


def test_means_are_of_like_runs_only(tmp_path):
    fake_run(tmp_path / "a", seed=0)
    fake_run(tmp_path / "b", seed=1, model__mask_ratio=0.5)
    assert means(collect([str(tmp_path)])) == []
    fake_run(tmp_path / "c", seed=0)  # the same as a: no second seed
    assert means(collect([str(tmp_path)])) == []
    fake_run(tmp_path / "d", seed=2, finished=False)
    assert means(collect([str(tmp_path)])) == []


def test_one_model_for_all_is_no_seed_of_a_model_each(tmp_path):
    fake_run(tmp_path / "all", draw=9, dataset__category="all")
    for i, category in enumerate(("bottle", "screw")):
        fake_run(tmp_path / category, (category,), draw=i, dataset__category=category)
    found = collect([str(tmp_path)])
    auroc = {(run.name, row.category): row.metrics["auroc"] for run in found for row in run.rows}
    together, each = means(found)
    assert (together.label, together.category, together.seeds) == ("one model for all", "mean of 2", ["0"])
    assert (each.label, each.category, each.seeds) == ("a model each", "mean of 2", ["0"])
    assert together.metrics["auroc"] == (pytest.approx(auroc["all", "mean of 2"]), None)
    assert each.metrics["auroc"] == (pytest.approx(fmean([auroc["bottle", "bottle"], auroc["screw", "screw"]])), None)
    assert [[run.name for run in one.runs] for one in (together, each)] == [["all"], ["bottle", "screw"]]


def test_models_for_different_choices_are_apart(tmp_path):
    for i, choice in enumerate((["a", "b"], ["c", "d"], ["d", "c"], "all")):
        names = tuple("abcd") if choice == "all" else choice
        fake_run(tmp_path / str(i), names, dataset__category=choice, seed=i, model__x=1)
    fake_run(tmp_path / "4", ("a",), dataset__category="a", model__x=2)
    found = collect([str(tmp_path)])
    ignored = ("seed", *CLASS_KEYS)
    groups = alike(found, *ignored)
    assert [[run.name for run in group] for group in groups] == [["0"], ["1", "2"], ["3"], ["4"]]
    assert common_labels(groups, *ignored) == [
        "one model for a + b, x=1",
        "one model for c + d, x=1",
        "one model for all, x=1",
        "a model each, x=2",
    ]
    assert len(alike(found, "seed")) == 5  # where they are not ignored, the settings tell them apart


def test_labels_are_never_equal(tmp_path):
    for i, value in enumerate((1, "1", True)):
        fake_run(tmp_path / str(i), model__x=value)
    groups = alike(collect([str(tmp_path)]), "seed")
    assert common_labels(groups, "seed") == ["x=1 (0)", "x=1 (1)", "x=true"]
