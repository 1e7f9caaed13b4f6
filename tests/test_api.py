"""Python does what the command line does, and leaves the process as it was."""

import logging
import os
import random
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.version import VersionBase
from readers import content, numbers, scores

import adlight as package
from adlight.detector import Detector
from adlight.types import UserError


@pytest.fixture
def here(adlight, monkeypatch):
    """The folder with the small data set as current folder. -> settings of a training that takes a second."""
    monkeypatch.chdir(adlight.folder)
    return adlight.quick


def state():
    """What a training changes for the whole process, if nobody puts it back."""
    generators = [random.random(), float(np.random.rand()), float(torch.rand(()))]
    hydra = GlobalHydra.instance().hydra, HydraConfig.instance().cfg, VersionBase.instance().version_base
    log = logging.root.handlers[:], logging.root.level
    return generators, hydra, log, dict(os.environ), sys.argv[:], torch.get_float32_matmul_precision()


def seeded_state():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    return state()


@pytest.fixture(scope="module")
def run(adlight):
    """The run of the fixture `tiny_run`, trained from Python."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(adlight.folder)
        words = [word for word in adlight.tiny if not word.startswith(("dataset.root", "trainer.max_epochs"))]
        return package.train(*words, root="data", max_epochs=2, run_dir="runs/tiny from python")


def test_numbers_are_those_of_the_command(run, tiny_run):
    by_command = tiny_run[0]
    assert numbers(run.path) == numbers(by_command) and scores(run.path) == scores(by_command)
    ours, theirs = ({str(path.relative_to(of)) for path in of.rglob("*")} for of in (run.path, by_command))
    assert {name for name in theirs - ours if not name.startswith(("evaluations", "predictions"))} == set()
    words = content(run.path)["command"].split()
    assert words[:2] == ["adlight", "train"] and {"dataset.root=data", "trainer.max_epochs=2"} < {*words}


def test_a_run_tells_its_numbers(run):
    known = content(run.path)
    assert run.metrics["auroc"] == known["auroc"] and run.metrics["val/auroc"] == known["validation"]["val/auroc"]
    assert run.results["categories"].keys() == {"bottle", "screw"} and run.config.dataset.batch_size == 4
    table = run.predictions
    assert isinstance(table, pd.DataFrame) and len(table) == 18
    assert ((table["score"] > table["threshold"]) == table["anomalous"]).all() and table["area"].dtype == float
    assert all(len(box) == 4 for boxes in table["boxes"] for box in boxes)
    again = package.load(run.path)
    assert again.metrics == run.metrics and again.path == run.path


def test_a_run_gives_its_detector(run):
    row = run.predictions.iloc[0]
    detector = run.detector(device="cpu", category=row["category"])
    assert isinstance(detector, Detector)
    (prediction,) = detector(str(run.path.parents[1] / row["path"]))
    assert prediction.score == pytest.approx(row["score"], rel=1e-6) and prediction.threshold == row["threshold"]


def test_a_notebook_shows_a_table_and_pictures(run):
    page = run._repr_html_()
    assert "<table" in page and "AUROC" in page and "mean of 2" in page
    assert page.count("data:image/webp;base64,") == 2 and len(page) < 2e6
    assert "auroc" in repr(run)


def test_nothing_is_left_behind(here):
    before = seeded_state()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first = package.train(*here, run_dir="runs/first")
    assert state() == before
    with pytest.raises(UserError, match="runs/first"):
        package.train(*here, run_dir="runs/first")  # as a command would be refused
    second = package.train(*here, seed=0, run_dir="runs/second")
    assert numbers(first.path) == numbers(second.path)
    third = package.train(resume=first.path, max_epochs=3)
    assert third.results["epochs"] == 3 and content(second.path)["epochs"] == 2


def test_where_hydra_is_in_use_already(here, tmp_path):
    from hydra import initialize_config_dir

    (tmp_path / "mine.yaml").write_text("a: 1")
    with initialize_config_dir(str(tmp_path), version_base="1.2"):
        mine = GlobalHydra.instance().hydra
        package.train(*here, run_dir=tmp_path / "run")
        assert GlobalHydra.instance().hydra is mine
    assert (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("words", "settings", "named"),
    [
        (["model=mae_smal"], {}, ["mae_small"]),
        ([], {"maks_ratio": 0.5}, ["maks_ratio", "mask_ratio"]),
        ([], {"model.maks_ratio": 0.5}, ["maks_ratio", "mask_ratio"]),
        ([], {"max_epochs": -1}, ["max_epochs", "-1"]),
        ([], {"root": object()}, ["root", "object"]),
        ([], {"root": "nowhere at all"}, ["nowhere at all"]),
        ([], {"resume": "nowhere"}, ["nowhere"]),
        ([], {"config_dir": "nowhere"}, ["nowhere"]),
        (["-m"], {}, ["multirun"]),
        (["seed=0,1"], {}, ["seed=0,1"]),
        (["sweep=seeds"], {}, ["multirun"]),
    ],
)
def test_what_a_user_can_fix_is_raised(here, tmp_path, words, settings, named):
    before = state()[1:]
    with pytest.raises(UserError) as caught:
        package.train(*here, *words, run_dir=tmp_path / "run", **settings)
    assert all(part in str(caught.value) for part in named) and "\n" not in str(caught.value)
    assert state()[1:] == before


def test_a_bug_keeps_its_traceback(here, tmp_path):
    before = state()[1:]
    with pytest.raises(Exception) as caught:
        package.train(*here, "+callbacks.bug._target_=trouble.Bug", run_dir=tmp_path / "run")
    assert not isinstance(caught.value, UserError | SystemExit) and state()[1:] == before


def test_stopped_it_says_how_to_go_on(here, tmp_path):
    words = ["+callbacks.stop._target_=trouble.Counter", "+callbacks.stop.ends=interrupted"]
    with pytest.raises(KeyboardInterrupt, match="resume"):
        package.train(*here, *words, run_dir=tmp_path / "run")
    run = package.load(tmp_path / "run")
    assert "not finished" in repr(run) and "not finished" in run._repr_html_()
    with pytest.raises(UserError, match="resume"):
        _ = run.metrics


@pytest.mark.slow
def test_several_devices_train_in_a_process_of_their_own(here, tmp_path, capfd):
    settings = {"devices": 2, "strategy": "ddp", "precision": "32-true"}
    run = package.train(*here, run_dir=tmp_path / "run", **settings)
    assert len(run.predictions) == 18 and "LOCAL_RANK" not in os.environ
    assert "test results" in capfd.readouterr().out
    with pytest.raises(UserError, match="nowhere"):
        package.train(*here, root="nowhere", run_dir=tmp_path / "broken", **settings)


def test_the_package_names_what_it_offers():
    assert set(package.__all__) <= set(dir(package)) and all(hasattr(package, name) for name in package.__all__)
    assert callable(package.train) and package.train.main  # a program too
    with pytest.raises(AttributeError, match="nothing"):
        _ = package.nothing


def test_load_refuses_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        package.load(tmp_path)
