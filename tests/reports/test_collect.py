"""Runs as rows: status, numbers to the digit, settings, evaluations, damage."""

import json
import re

import pandas as pd
import pytest
from makers import fake_run

from adlight.reports.collect import collect, metric_columns
from adlight.reports.grouping import average_runs
from adlight.reports.monitoring import Monitoring
from adlight.reports.page import render
from adlight.reports.reference import compare
from adlight.reports.rows import read_results, result_rows, setting_row
from adlight.reports.tables import results_csv, results_markdown
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


def test_every_run_has_a_row_with_its_status(sweep):
    found = collect([str(sweep)])
    runs = found.headlines.set_index("name")
    assert list(runs.index) == ["one", *(f"sweep/{i}" for i in (2, 3, 4, 5, 6, 10))]  # 10 comes after 6
    assert dict(runs["status"]) == {"one": "finished", "sweep/2": "finished", "sweep/3": "unfinished",
                                    "sweep/4": "damaged", "sweep/5": "damaged", "sweep/6": "damaged",
                                    "sweep/10": "failed"}  # fmt: skip
    assert found.states == "2 finished, 1 unfinished, 3 damaged, 1 failed"
    assert list(found.problems) == [f"sweep/{i}" for i in (3, 4, 5, 6, 10)]
    assert re.fullmatch(r"unfinished\. [\w, ]*killed", found.problems["sweep/3"])
    assert "ValueError: too small" in found.problems["sweep/10"] and "10/train.log" in found.problems["sweep/10"]
    for name, file in (("4", "metrics.json"), ("5", "predictions.csv"), ("6", ".hydra/config.yaml")):
        assert f"sweep/{name}/{file}" in found.problems[f"sweep/{name}"]
    assert runs["auroc"].notna().to_dict()["sweep/5"]  # its numbers are reported all the same
    assert set(found.predictions["name"]) == {"one", "sweep/2", "sweep/4"}
    assert pd.isna(runs["category"]["sweep/3"])


def test_a_failed_run_keeps_its_numbers_until_it_begins_anew(tmp_path):
    run = RunFolder(fake_run(tmp_path / "0", error="the results are another job's"))
    rows, _ = read_results(run)
    assert {row["status"] for row in rows} == {"failed"} and rows[0]["auroc"] >= 0
    assert len(run.predictions()) == 40 and len(run.panel_paths()) == 2
    run.begin({})
    assert [row["status"] for row in read_results(run)[0]] == ["unfinished"]
    assert run.predictions() is None and run.panel_paths() == [] and collect([str(run)]).predictions.empty


def test_numbers_are_those_of_the_run_to_the_digit(sweep):
    results = collect([str(sweep / "sweep" / "2")]).results.set_index("category")
    content = json.loads((sweep / "sweep" / "2" / "metrics.json").read_text())
    assert list(results.index) == ["bottle", "screw", "mean of 2", "pooled"]
    assert list(results["level"]) == ["category", "category", "mean", "pooled"]
    assert list(results.index[results["headline"]]) == ["mean of 2"]
    tables = {**content["categories"], "mean of 2": content, "pooled": content["pooled"]}
    for name, table in tables.items():
        row = results.loc[name].dropna()
        for metric in [*metric_columns(results), "auroc_lower", "auroc_upper", "ap_upper"]:
            assert row.get(metric) == table.get(metric), (name, metric)
    assert (results["normal_images"]["bottle"], results["threshold"]["screw"]) == (10, 3.0)
    assert pd.isna(results["threshold"]["mean of 2"]) and results["epochs"]["pooled"] == 3


def test_a_run_of_one_category_needs_no_mean(sweep):
    results = collect([str(sweep / "one")]).results
    assert list(results["category"]) == ["bottle"] and results["headline"].all()
    assert list(results["name"]) == ["one"]  # the only run has its folder's name


def test_what_is_not_a_number_is_left_out():
    table = {"a": 1, "b": float("nan"), "c": None, "e": "x", "f": float("inf"), "normal": 3}
    (row,) = result_rows({"categories": {"x": table}})
    assert row == {"level": "category", "category": "x", "headline": True, "a": 1.0, "normal_images": 3.0}


def test_settings_are_written_as_in_a_config():
    values = {"a": True, "b": None, "c": 1, "d": 0.75, "e": [1, "x"], "f": "word", "g": "1", "resume": "runs/x"}
    row = setting_row({f"model.{name}": value for name, value in values.items()} | {"resume": 1}, {"dataset": "mnist"})
    texts = [row[f"config.model.{name}"] for name in "abcdefg"]
    assert texts == ["true", "null", "1", "0.75", '[1, "x"]', "word", '"1"']  # a word that looks like a number
    assert "config.resume" not in row and row["dataset"] == "mnist"  # where a run lies makes no difference
    assert setting_row({"model._target_": "adlight.mae.module.MAE"}, {})["model"] == "MAE"


def test_a_glob_a_list_and_overlapping_places(sweep):
    assert list(collect([str(sweep / "sw*" / "[23]")]).headlines["name"]) == ["2", "3"]
    assert len(collect([str(sweep / "one"), str(sweep / "sweep"), str(sweep)]).headlines) == 7


def test_places_without_runs(tmp_path):
    (tmp_path / "empty").mkdir()
    fake_run(tmp_path / "predictions", finished=False)
    (tmp_path / "predictions" / ".hydra" / "config.yaml").write_text("{run: x, images: y}")
    for place in ("empty", "nowhere", "*.x", "predictions"):
        with pytest.raises(UserError) as error:
            collect([str(tmp_path / place)])
        assert str(tmp_path / place) in str(error.value)


def test_an_evaluation_is_its_run_with_its_changes(tmp_path):
    run = fake_run(tmp_path / "run", model__scorer={"reduce": "mean", "score": "mse"})
    evaluation = fake_run(run / "evaluations" / "1")
    config = f"{{run: {run}, ckpt: null, model: {{scorer: {{reduce: max}}}}}}"
    (evaluation / ".hydra" / "config.yaml").write_text(config)
    assert list(collect([str(tmp_path)]).headlines["folder"]) == [str(run)]  # not named, it is its run's affair
    found = collect([str(run / "evaluations")]).headlines.iloc[0]
    assert (found["name"], found["model"]) == ("1", "mae")
    assert (found["config.model.scorer.reduce"], found["config.model.scorer.score"]) == ("max", "mse")


def edit(name, old, new):
    def damage(run):
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new))

    return damage


def cut(name, share):
    def damage(run):
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[: int(len(content) * share)])

    return damage


def fill(name, content):
    return lambda run: (run / name).write_bytes(content)


def score(text):
    def damage(run):
        lines = (run / "predictions.csv").read_text().splitlines()
        cells = lines[3].split(",")
        lines[3] = ",".join([*cells[:4], text, *cells[5:]])
        (run / "predictions.csv").write_text("\n".join(lines) + "\n")

    return damage


DAMAGE = {
    "NaN in a CSV": (score("nan"), "predictions.csv"),
    "infinity in a CSV": (score("inf"), "predictions.csv"),
    "text in a CSV": (score("x"), "predictions.csv"),
    "another label": (edit("predictions.csv", ",x,1,", ",x,2,"), "predictions.csv"),
    "a CSV of nothing": (fill("predictions.csv", b""), "predictions.csv"),
    "a binary CSV": (fill("predictions.csv", bytes(range(256)) * 9), "predictions.csv"),
    "a truncated config": (cut(".hydra/config.yaml", 0.97), "config.yaml"),
    "half a config": (fill(".hydra/config.yaml", b"seed: 0\nmo"), "config.yaml"),
    "an empty config": (fill(".hydra/config.yaml", b""), "config.yaml"),
    "a config without a model": (fill(".hydra/config.yaml", b"seed: 0\n"), "config.yaml"),
    "a binary config": (fill(".hydra/config.yaml", bytes(range(256))), "config.yaml"),
    "broken choices": (fill(".hydra/hydra.yaml", b"hydra: {runtime: {choices: yes}}"), ""),
    "broken hydra.yaml": (fill(".hydra/hydra.yaml", b"hydra: ["), "hydra.yaml"),
    "text in metrics.json": (edit("metrics.json", '"f1_max": ', '"f1_max": "high", "was": '), "metrics.json"),
    "epochs as text": (edit("metrics.json", '"epochs": 3', '"epochs": "three"'), "metrics.json"),
    "seconds as a list": (edit("metrics.json", '"seconds": 12.5', '"seconds": [1]'), "metrics.json"),
    "binary metrics.json": (fill("metrics.json", b"\xff\xfe{}"), "metrics.json"),
    "a list": (fill("metrics.json", b"[]"), "metrics.json"),
}


@pytest.mark.parametrize("damage, file", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_run_is_a_row_and_not_the_end(tmp_path, damage, file):
    fake_run(tmp_path / "whole")
    damage(fake_run(tmp_path / "broken", draw=1))
    found = compare(collect([str(tmp_path)]), None, None)
    assert dict(found.headlines[["name", "status"]].to_numpy()) == {"broken": "damaged", "whole": "finished"}
    line = found.problems["broken"]
    assert line.startswith("damaged, because ") and "\n" not in line and f"{tmp_path}/broken" in line and file in line
    page = render(found, average_runs(found.results), "title", 0.02, 8, 4, tmp_path, Monitoring())
    assert "whole" in page and "damaged" in page
    assert results_markdown(found, average_runs(found.results), "title") and results_csv(found)


def test_a_binary_error_is_shown(tmp_path):
    fake_run(tmp_path / "run", finished=False, error="x")
    (tmp_path / "run" / "error.txt").write_bytes(b"out of \xff memory")
    assert collect([str(tmp_path)]).problems["run"].startswith("failed. out of")
