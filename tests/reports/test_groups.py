"""Means over seeds and over runs of a category each."""

from statistics import fmean, stdev

import pytest
from makers import fake_run

from adlight.reports.collect import collect
from adlight.reports.groups import MISSING, differences, means, short_keys, shown


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
