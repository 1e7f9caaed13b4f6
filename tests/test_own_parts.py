"""The README's recipe for a detector and a data set of one's own, by the commands that it prints."""

import re
import shlex
import sys

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from readers import content, numbers, table
from test_commands import README

import adlight as package
from adlight.runs.config import drop_objective
from adlight.types import UserError

TEXT = README.read_text()
SECTION = TEXT[TEXT.index("## Your own detector") :].partition("\n## ")[0]
FENCES = re.findall(r"^```\w+\n(.*?)^```", SECTION, re.M | re.S)


def files():
    """The files that the recipe prints, by name: each begins with a comment that names it."""
    found = {}
    for fence in FENCES:
        parts = re.split(r"^# (my_[\w/.]+)\n", fence, flags=re.M)
        found |= dict(zip(parts[1::2], parts[2::2], strict=True))
    return found


def commands():
    (shell,) = [fence for fence in FENCES if "adlight train" in fence]
    return [shlex.split(line, comments=True) for line in shell.splitlines()]


@pytest.fixture(scope="module")
def own(adlight, tmp_path_factory):
    """The command line in a folder with the recipe's files and some images."""
    folder = tmp_path_factory.mktemp("own")
    for name, text in files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for i in range(19):
        pixels = np.random.default_rng(i).integers(40, 60, (64, 64, 3), dtype=np.uint8)
        path = folder / "parts" / ("ok" if i < 15 else "scratched") / f"{i:02d}.png"
        if i >= 15:
            pixels[30:33, 10:50] = 255
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("ADLIGHT_TRUST", "my_parts")
        patch.chdir(folder)
        patch.setattr(adlight, "folder", folder)
        yield adlight
    sys.modules.pop("my_parts", None)


@pytest.fixture(scope="module")
def run(own):
    """What the recipe's commands left: the run's folder."""
    trained = None
    for export, *words in commands():
        if export == "export":
            assert words == ["ADLIGHT_TRUST=my_parts"]
            continue
        program, *words = words
        outcome = own(program, *(word.replace("runs/<name>", str(trained)) for word in words))
        assert outcome.code == 0, outcome.err
        if program == "train":
            trained = next(line for line in outcome.out.splitlines() if line.startswith("run folder: "))[12:]
    return package.load(trained)


def test_the_recipe_is_short():
    detector = files()["my_parts.py"].partition("class Autoencoder")[2]
    assert len(detector.splitlines()) <= 25
    assert set(files()) == {"my_parts.py", "my_conf/dataset/parts.yaml", "my_conf/model/plain_autoencoder.yaml"}
    assert [words[1] for words in commands()] == ["ADLIGHT_TRUST=my_parts", "train", "evaluate", "predict"]


def test_it_trains_evaluates_and_predicts(run):
    assert content(run.path)["epochs"] == 10 and len(run.predictions) == 3 + 4
    assert set(run.predictions["defect"]) == {"good", "scratch"} and run.metrics["auroc"] == 1
    losses = [float(row["train/loss"]) for row in table(run.path / "metrics.csv") if row.get("train/loss")]
    assert losses[-1] < losses[0]
    (evaluation,) = (run.path / "evaluations").iterdir()
    assert content(evaluation)["auroc"] == content(run.path)["auroc"]
    (prediction,) = (run.path / "predictions").iterdir()
    assert len(table(prediction / "predictions.csv")) == 4 and len(list((prediction / "maps").iterdir())) == 4


def test_it_resumes_and_is_reported(own, run):
    words = commands()[1][2:]
    own.train(*words, "~callbacks.panels", "trainer.max_epochs=8", "hydra.run.dir=runs/stopped")
    own.train("resume=runs/stopped", "trainer.max_epochs=10")
    assert numbers(own.folder / "runs" / "stopped") == numbers(run.path)
    (own.folder / "runs" / "stopped" / "metrics.json").unlink()
    outcome = own("train", *words, "~callbacks.panels", "resume=auto")
    assert outcome.code == 0 and f"run folder: {own.folder / 'runs' / 'stopped'}" in outcome.out, outcome.err
    outcome = own("report", "runs=runs")
    assert outcome.code == 0 and {row["model"] for row in table(own.folder / "runs/report/results.csv")} == {
        "plain_autoencoder"
    }


def test_it_is_swept_beside_a_model_that_lacks_its_setting(own):
    words = [word for word in commands()[1][2:] if not word.startswith("model=")]
    sweep = ["model=plain_autoencoder,knn", "model.width=8", "trainer.max_epochs=1", "hydra.sweep.dir=swept"]
    outcome = own("train", "-m", *words, "~callbacks.panels", "~callbacks.gallery", *sweep)
    assert outcome.code == 0 and "model.width=8 is left out: model=knn" in outcome.out, outcome.err
    assert [row["status"] for row in table(own.folder / "swept" / "results.csv")] == ["finished"] * 2


def test_a_group_of_the_run_is_changed(own, run):
    outcome = own("evaluate", "--config-dir", "my_conf", f"run={run.path}", "trainer=cpu")
    assert outcome.code == 0, outcome.err
    (own.folder / "clash" / "model").mkdir(parents=True)
    (own.folder / "clash" / "model" / "vae.yaml").write_text("_target_: my_parts.Autoencoder\n")
    outcome = own("train", "--config-dir", "clash", "model=vae", "dataset=parts")
    assert outcome.code == 2 and "vae.yaml" in outcome.err
    outcome = own("train", "model=plain_autoencoder", "dataset=parts")
    assert outcome.code == 2 and "autoencoder" in outcome.err


def test_it_works_in_python(own, run):
    words = [word for word in commands()[1][2:] if word not in ("--config-dir", "my_conf")]
    again = package.train(*words, "~callbacks.panels", config_dir="my_conf")
    assert numbers(again.path) == numbers(run.path)
    (prediction,) = again.detector(device="cpu")("parts/scratched/15.png")
    assert prediction.score == pytest.approx(again.predictions.query("label == 1")["score"].iloc[0], rel=1e-6)


def test_who_does_not_trust_it_is_told_how(run, monkeypatch):
    monkeypatch.delenv("ADLIGHT_TRUST")
    with pytest.raises(UserError, match=r"my_parts\.\w+.*ADLIGHT_TRUST"):
        run.detector()


def test_an_own_objective_is_kept():
    """Prediction leaves out adlight's own, whose weights it does not need."""
    for target, kept in (("my_parts.Autoencoder", True), ("adlight.mae.module.MAEModule", False)):
        config = OmegaConf.create({"model": {"_target_": target, "objective": {"_target_": "my_parts.Loss"}}})
        drop_objective(config)
        assert (config.model.objective is not None) == kept
