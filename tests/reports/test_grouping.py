"""Runs that belong together, what they are called, and means over seeds and over runs of one category each."""

from statistics import fmean, stdev

import pytest
from makers import fake_run

from adlight.reports import grouping
from adlight.reports.collect import collect
from adlight.reports.grouping import CLASS_KEYS, SEED, average_runs, average_series, group_by_config, make_titles
from adlight.reports.reference import compare


def runs_of(root):
    return collect([str(root)]).headlines


def names(groups):
    return {label: list(of["name"]) for label, of in groups.items()}


def auroc(results):
    return results.set_index(["name", "category"])["auroc"].to_dict()


def test_settings_that_differ(tmp_path):
    fake_run(tmp_path / "a", finished=False, model__x=[1, 2], model__same={"y": None})
    fake_run(tmp_path / "b", finished=False, model__x=[1, 3], model__same={"y": None}, trainer__x=True, seed=1)
    runs = runs_of(tmp_path)
    columns = grouping.find_differing(runs)
    assert columns == ["config.seed", "config.model.x", "config.trainer.x"]
    assert list(grouping.shorten_keys(columns).values()) == ["seed", "model.x", "trainer.x"]
    assert runs["config.trainer.x"].isna().tolist() == [True, False]


def test_titles_say_what_differs_within_a_model(tmp_path):
    for i, ratio in enumerate((0.5, 0.75)):
        fake_run(tmp_path / str(i), finished=False, model__mask_ratio=ratio, resume=i or None)
    fake_run(tmp_path / "2", finished=False, model="gan", dataset__normal_dir=["a", "b"])
    assert make_titles(runs_of(tmp_path)) == {"0": "0 (mask_ratio=0.5)", "1": "1 (mask_ratio=0.75)", "2": "2"}


def test_settings_of_mistyped_commands_come_last(tmp_path):
    for i, (size, root) in enumerate([(320, "a"), (320, "b"), (64, "a")]):
        fake_run(tmp_path / str(i), finished=i < 2, dataset__image_size=size, dataset__root=root)
    assert make_titles(runs_of(tmp_path))["2"] == "2 (root=a, image_size=64)"


def test_a_frame_that_the_images_decided_is_no_setting_that_differs(tmp_path):
    for i, size in enumerate((320, [48, 320])):
        requested = {"image_size": 320, "keep_shape": "auto"}
        fake_run(tmp_path / str(i), requested_frame=requested, dataset__image_size=size, dataset__root=f"p{i}")
    assert make_titles(runs_of(tmp_path)) == {"0": "0 (root=p0)", "1": "1 (root=p1)"}


def test_means_over_seeds_and_classes(tmp_path):
    for seed in (0, 1, 2):
        for digit in (3, 7):
            fake_run(tmp_path / f"{seed}{digit}", (str(digit),), seed=seed, draw=digit, dataset__normal=digit)
    results = collect([str(tmp_path)]).results
    values = auroc(results)
    three, _, both = (row for _, row in average_runs(results).iterrows())
    assert list(average_runs(results)["category"]) == ["3", "7", "mean of 2"] and three["seeds"] == "0, 1, 2"
    of_three = [values[f"{seed}3", "3"] for seed in (0, 1, 2)]
    of_both = [fmean([values[f"{seed}3", "3"], values[f"{seed}7", "7"]]) for seed in (0, 1, 2)]
    for row, expected in ((three, of_three), (both, of_both)):
        assert row["auroc"] == pytest.approx(fmean(expected), abs=1e-12)
        for end in (row["auroc_upper"] - row["auroc"], row["auroc"] - row["auroc_lower"]):
            assert end == pytest.approx(stdev(expected), abs=1e-12)


def test_one_seed_has_no_deviation(tmp_path):
    for digit in (3, 7):
        fake_run(tmp_path / str(digit), (str(digit),), dataset__normal=digit)
    table = average_runs(collect([str(tmp_path)]).results)
    assert list(table["seeds"]) == ["0"] and "auroc" in table and "auroc_lower" not in table


def test_means_are_of_like_runs_only(tmp_path):
    def count():
        return len(average_runs(collect([str(tmp_path)]).results))

    fake_run(tmp_path / "a", seed=0)
    fake_run(tmp_path / "b", seed=1, model__mask_ratio=0.5)
    assert count() == 0
    fake_run(tmp_path / "c", seed=0)  # the same as a: no second seed
    assert count() == 0
    fake_run(tmp_path / "d", seed=2, finished=False)
    assert count() == 0
    fake_run(tmp_path / "e", seed=1)  # two categories and their mean, in spite of the repetition
    assert count() == 3


def test_one_model_for_all_is_not_a_seed_of_one_model_per_category(tmp_path, published_sets_are_small):
    words = {"sweep": "categories", "model": "mae", "dataset": "mvtec"}
    fake_run(tmp_path / "all", draw=9, dataset__category="all", **words)
    for i, category in enumerate(("bottle", "screw")):
        fake_run(tmp_path / category, (category,), draw=i, dataset__category=category, **words)
    found = compare(collect([str(tmp_path)]), None, None)
    values = auroc(found.results)
    table = average_runs(found.results).set_index("runs")
    assert list(table.index) == ["one model for all", "one model per category"]
    assert set(table["category"]) == {"mean of 2"} and set(table["seeds"]) == {"0"}
    each = fmean([values["bottle", "bottle"], values["screw", "screw"]])
    assert list(table["auroc"]) == [pytest.approx(values["all", "mean of 2"]), pytest.approx(each)]
    assert list(table["reference_auroc"]) == [pytest.approx((0.993 + 0.804) / 2)] * 2
    groups = group_by_config(found.headlines, SEED, *CLASS_KEYS)
    assert names(groups) == {"one model for all": ["all"], "one model per category": ["bottle", "screw"]}
    bars = average_series(found, groups, "auroc").set_index(["series", "category"])  # no mean of both models
    runs = {"one model for all": ("all", "all"), "one model per category": ("bottle", "screw")}
    for series, of in runs.items():
        for name, category, paper in zip(of, ("bottle", "screw"), (0.993, 0.804), strict=True):
            assert bars.loc[series, category][["value", "paper"]].tolist() == [values[name, category], paper]


def test_bars_have_deviations_over_seeds_or_else_intervals(tmp_path):
    for seed, ratio in ((0, 0.5), (1, 0.5), (0, 0.75)):
        fake_run(tmp_path / f"{seed}-{ratio}", ("x",), seed=seed, model__mask_ratio=ratio, images=40)
    fake_run(tmp_path / "0-0.75 again", ("x",), seed=0, model__mask_ratio=0.75, images=40)  # is no seed either
    found = compare(collect([str(tmp_path)]), [], None)
    two, one = (row for _, row in average_series(found, group_by_config(found.headlines, SEED), "auroc").iterrows())
    values = found.results.set_index("name")[["auroc", "auroc_lower", "auroc_upper"]].T
    both = [values["0-0.5"]["auroc"], values["1-0.5"]["auroc"]]
    assert two["upper"] - two["value"] == pytest.approx(stdev(both)) and two["value"] == pytest.approx(fmean(both))
    assert one[["value", "lower", "upper"]].tolist() == values["0-0.75"].tolist()
    assert average_series(found, group_by_config(found.headlines, SEED), "aupro").empty


def test_models_for_different_choices_are_apart(tmp_path):
    for i, choice in enumerate((["a", "b"], ["c", "d"], ["d", "c"], "all")):
        categories = tuple("abcd") if choice == "all" else choice
        fake_run(tmp_path / str(i), categories, dataset__category=choice, seed=i, model__x=1)
    fake_run(tmp_path / "4", ("a",), dataset__category="a", model__x=2)
    assert names(group_by_config(runs_of(tmp_path), SEED, *CLASS_KEYS)) == {
        "one model for a + b, x=1": ["0"],
        "one model for c + d, x=1": ["1", "2"],
        "one model for all, x=1": ["3"],
        "one model per category, x=2": ["4"],
    }
    assert len(group_by_config(runs_of(tmp_path), SEED)) == 5  # not ignored, the settings tell them apart


def test_labels_are_never_equal(tmp_path):
    for i in range(8):  # six settings are equal in words in half of them, the seventh tells them apart
        words = {f"model__{name}": f"{name}{i % 2}" for name in "abcdef"}
        fake_run(tmp_path / str(i), ("x", "y"), **words, model__z=i)
    labels = list(group_by_config(runs_of(tmp_path), SEED))
    assert len(labels) == 8 and labels[3] == "a=a1, b=b1, c=c1, d=d1, e=e1, f=f1 and 1 more (3)"
    groups = group_by_config(runs_of(tmp_path / "[12]").drop(columns="config.model.z"), SEED)
    assert list(groups) == ["a=a1, b=b1, c=c1, d=d1, e=e1, f=f1", "a=a0, b=b0, c=c0, d=d0, e=e0, f=f0"]


def test_a_histogram_has_its_runs_name_only_where_it_needs_it(tmp_path):
    for name, category in (("0", "bottle"), ("1", "screw"), ("2", "screw")):
        fake_run(tmp_path / name, (category,), dataset__category=category)
    fake_run(tmp_path / "3", finished=False)
    ((title, cells),) = grouping.group_scores(collect([str(tmp_path)]))
    assert title == "0 to 2" and list(cells) == ["bottle", "screw (1)", "screw (2)"]
    ((_, cells),) = grouping.group_scores(collect([str(tmp_path / "[12]")]))
    assert list(cells) == ["1", "2"]
    assert list(grouping.group_scores(collect([str(tmp_path / "3")]))) == []
