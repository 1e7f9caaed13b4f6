"""Runs as rows: states, numbers to the digit, labels, thresholds, evaluations, damage."""

import json

import pytest
from makers import fake_run

from adlight.reports.collect import collect, intervals, numbers
from adlight.reports.groups import label
from adlight.runs.folder import RunFolder
from adlight.types import UserError


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep of one good job, one failed, one unfinished and three damaged, and a run beside it."""
    root = tmp_path_factory.mktemp("collect")
    fake_run(root / "sweep" / "2", model__mask_ratio=0.5)
    failed = fake_run(root / "sweep" / "10", finished=False, error="Traceback ...\n\nValueError: too small\n")
    (failed / "train.log").write_text("")
    fake_run(root / "sweep" / "3", finished=False)
    (fake_run(root / "sweep" / "4") / "metrics.json").write_text('{"auroc": 0.5, "categ')
    (fake_run(root / "sweep" / "5") / "predictions.csv").write_text("path,category\na.png,bottle\n")
    (fake_run(root / "sweep" / "6") / ".hydra" / "config.yaml").write_text("a: [1")
    fake_run(root / "one", categories=("bottle",))
    return root


def test_every_run_is_a_row_with_its_state(sweep):
    found = {run.name: run for run in collect([str(sweep)])}
    assert list(found) == ["one", *(f"sweep/{i}" for i in (2, 3, 4, 5, 6, 10))]  # 10 comes after 6
    states = {name: run.state for name, run in found.items()}
    assert states == {"one": "finished", "sweep/2": "finished", "sweep/3": "unfinished", "sweep/4": "damaged",
                      "sweep/5": "finished", "sweep/6": "damaged", "sweep/10": "failed"}  # fmt: skip
    assert found["sweep/10"].reason == f"ValueError: too small (log: {sweep / 'sweep' / '10' / 'train.log'})"
    assert "4/metrics.json is damaged" in found["sweep/4"].reason
    assert "5/predictions.csv is damaged" in found["sweep/5"].reason
    assert found["sweep/5"].rows and not found["sweep/5"].predictions  # its numbers are reported all the same
    assert "6/.hydra/config.yaml" in found["sweep/6"].reason
    assert found["sweep/3"].reason == "" and found["sweep/3"].rows == []


def test_numbers_are_those_of_the_run_to_the_digit(sweep):
    (run,) = collect([str(sweep / "sweep" / "2")])
    content = json.loads((run.path / "metrics.json").read_text())
    rows = {row.category: row for row in run.rows}
    assert list(rows) == ["bottle", "screw", "mean of 2", "pooled"]
    for name in ("bottle", "screw"):
        table = content["categories"][name]
        assert rows[name].metrics.items() <= table.items()
        others = {f"{metric}_{end}" for metric in ("auroc", "ap", "f1_max") for end in ("lower", "upper")}
        assert table.keys() - rows[name].metrics.keys() == others | {"threshold", "pixel_threshold"}
        assert rows[name].intervals["auroc"] == (table["auroc_lower"], table["auroc_upper"])
    assert rows["pooled"].metrics.items() <= content["pooled"].items()
    assert rows["mean of 2"].metrics["auroc"] == content["auroc"]
    assert "threshold" not in rows["mean of 2"].metrics and "seed" not in rows["mean of 2"].metrics
    assert rows["mean of 2"].intervals["ap"] == (content["ap_lower"], content["ap_upper"])
    assert run.headline == rows["mean of 2"]
    assert (rows["bottle"].threshold, rows["screw"].threshold, rows["mean of 2"].threshold) == (2.0, 3.0, None)


def test_a_run_of_one_category_needs_no_mean(sweep):
    (run,) = collect([str(sweep / "one")])
    assert [row.category for row in run.rows] == ["bottle"] and run.headline == run.rows[0]
    assert run.name == "one"  # the only run has its folder's name


def test_what_is_no_number_is_left_out():
    assert numbers({"a": 1, "b": float("nan"), "c": None, "d": True, "e": "x", "f": float("inf")}) == {"a": 1.0}
    assert numbers(None) == {}
    assert intervals({"a": 0.5, "a_lower": 0.1, "a_upper": 0.7, "b": 0.2, "b_lower": 0.1}) == {"a": (0.1, 0.7)}


def test_labels_say_what_differs(tmp_path):
    for i, ratio in enumerate((0.5, 0.75)):
        fake_run(tmp_path / str(i), finished=False, model__mask_ratio=ratio, resume=i or None)
    fake_run(tmp_path / "2", finished=False, model="gan", dataset__normal_dir=["a", "b"])
    found = collect([str(tmp_path)])
    label(found)
    assert [run.label for run in found] == ["mask_ratio=0.5", "mask_ratio=0.75", ""]
    assert [run.model for run in found] == ["mae", "mae", "gan"]


def test_a_glob_a_list_and_overlapping_places(sweep):
    assert [run.name for run in collect([str(sweep / "sw*" / "[23]")])] == ["2", "3"]
    assert len(collect([str(sweep / "one"), str(sweep / "sweep"), str(sweep)])) == 7


def test_places_without_runs(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no runs in .*empty: a run's folder holds .hydra/config.yaml"):
        collect([str(tmp_path / "empty")])
    with pytest.raises(UserError, match=r"nowhere: there is no such folder"):
        collect([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match=r"as a glob it matches nothing"):
        collect([str(tmp_path / "*.x")])
    fake_run(tmp_path / "predictions", finished=False)
    (tmp_path / "predictions" / ".hydra" / "config.yaml").write_text("{run: x, images: y}")
    with pytest.raises(UserError, match="no runs in"):
        collect([str(tmp_path / "predictions")])


def test_an_evaluation_is_its_run_with_its_changes(tmp_path):
    run = fake_run(tmp_path / "run", model__scorer={"reduce": "mean", "score": "mse"})
    evaluation = fake_run(run / "evaluations" / "1")
    config = f"{{run: {run}, ckpt: null, model: {{scorer: {{reduce: max}}}}}}"
    (evaluation / ".hydra" / "config.yaml").write_text(config)
    assert [found.path for found in collect([str(tmp_path)])] == [run]  # where it is not named, it is its run's affair
    settings, choices = RunFolder(evaluation).settings()
    expected, _ = RunFolder(run).settings()
    assert settings == expected | {"model.scorer.reduce": "max"} and choices["model"] == "mae"
    assert settings["run_dir"] == "${hydra:runtime.output_dir}"
    assert [found.name for found in collect([str(run / "evaluations")])] == ["1"]
