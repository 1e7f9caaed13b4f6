"""A GAN through the command line: both stages, what they leave behind, how they go on, all ways to invert."""

import json
import shutil
import signal

import numpy as np
import pytest
import torch
from gan.tiny import CtrlC
from makers import write_image
from processes import in_processes
from readers import numbers, table

from adlight.detector import Detector

STOPPABLE = "+callbacks.stop._target_=gan.tiny.CtrlC"


@pytest.fixture
def keyboard():
    """Lightning makes a process deaf to Ctrl-C when it is stopped by one."""
    before = signal.getsignal(signal.SIGINT)
    yield
    CtrlC.place = None
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def gan_run(adlight):
    """A complete run of both stages: its folder and what it printed."""
    outcome = adlight("train", *adlight.gan, STOPPABLE, "model.gan.ema=0.9", "hydra.run.dir=runs/gan")
    assert outcome.code == 0, outcome.err
    return adlight.folder / "runs" / "gan", outcome.out


def tensors(run, name="last"):
    state = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}


def test_what_a_run_leaves(gan_run):
    run, out = gan_run
    found = json.loads((run / "metrics.json").read_text())
    assert found["generator_steps"] == 3 and found["epochs"] == 4
    assert "digit 0" in found["protocol"] or "0 normal" in found["protocol"]
    assert all(0 <= found[name] <= 1 for name in ("auroc", "ap", "f1_max", "f1_calibrated", "trivial_f1"))
    assert (run / "samples" / "epoch-0002.png").exists() and len(list((run / "panels").glob("*.png"))) == 1
    first, second = (table(run / f"{name}.csv") for name in ("pretraining", "metrics"))
    assert [row["epoch"] for row in first] == [row["epoch"] for row in second] == ["0", "1"]
    assert all(row["train/wasserstein"] and row["generator_steps"] and "val/auroc" not in row for row in first)
    assert all(row["train/encoder"] and row["val/auroc"] and "train/wasserstein" not in row for row in second)
    checkpoints = {path.stem: torch.load(path, weights_only=True) for path in (run / "checkpoints").iterdir()}
    assert checkpoints.keys() == {"pretraining", "best", "last"}
    assert checkpoints["pretraining"]["epoch"] == checkpoints["last"]["epoch"] == 1
    assert "3 generator steps; inversion: encoder" in out
    scores = [float(row["score"]) for row in table(run / "predictions.csv")]
    assert len(scores) == 20 and np.isfinite(scores).all() and len(set(scores)) == 20


def test_evaluate_and_detector_give_the_same_numbers(adlight, gan_run):
    run, _ = gan_run
    again = adlight.evaluate(run)
    assert (again / "predictions.csv").read_bytes() == (run / "predictions.csv").read_bytes()
    assert json.loads((again / "metrics.json").read_text())["generator_steps"] == 3
    raw = (adlight.folder / "mnist" / "MNIST" / "raw" / "t10k-images-idx3-ubyte").read_bytes()[16:]
    images = np.frombuffer(raw, np.uint8).reshape(-1, 28, 28)
    rows = table(run / "predictions.csv")
    answers = Detector.load(run)([images[int(row["path"].split("/")[1])] for row in rows])
    for row, answer in zip(rows, answers, strict=True):
        assert answer.score == pytest.approx(float(row["score"]), rel=1e-4, abs=1e-4)
        assert answer.threshold == float(row["threshold"])


@pytest.mark.parametrize(
    "setting", ["reach=0.5", "feature=whitened", "distance=mahalanobis model.scorer.weights.residual=1"]
)
def test_scorer_is_fitted_by_an_evaluation(adlight, gan_run, setting):
    """It is fitted where thresholds are calibrated, so that a run trained without it can be evaluated."""
    again = adlight.evaluate(gan_run[0], *f"model.scorer.{setting}".split())
    scores = [[float(row["score"]) for row in table(folder / "predictions.csv")] for folder in (gan_run[0], again)]
    assert np.isfinite(scores[1]).all() and len(set(scores[1])) == 20 and scores[0] != scores[1]


def test_predict(adlight, gan_run):
    write_image(adlight.folder / "new" / "a.png", size=28, channels=1)
    outcome = adlight("predict", "run=runs/gan", "images=new", "hydra.run.dir=answers", "save=panels")
    assert outcome.code == 0, outcome.err
    (row,) = table(adlight.folder / "answers" / "predictions.csv")
    assert np.isfinite(float(row["score"])) and (adlight.folder / "answers" / "panels" / "a.png").exists()


@pytest.mark.parametrize("stage", ["AdversarialModule", "GANDetector"])
def test_ctrl_c_in_either_stage(adlight, gan_run, keyboard, stage):
    run, folder = gan_run[0], f"runs/stopped in {stage}"
    CtrlC.place = stage, 1
    outcome = adlight("train", *adlight.gan, STOPPABLE, "model.gan.ema=0.9", f"hydra.run.dir='{folder}'")
    assert outcome.code == 130 and "adlight train" in outcome.err, outcome.err
    stopped = adlight.folder / folder
    assert (stopped / "checkpoints" / "best.ckpt").exists() == (stage == "GANDetector")
    CtrlC.place = None
    outcome = adlight("train", "resume=auto", *adlight.gan, STOPPABLE, "model.gan.ema=0.9")
    assert outcome.code == 0 and f"run folder: {stopped}\n" in outcome.out, outcome.err
    for name in ("predictions.csv", "metrics.csv", "pretraining.csv", "samples/epoch-0002.png"):
        assert (stopped / name).read_bytes() == (run / name).read_bytes(), name
    assert numbers(stopped) == numbers(run)
    mine, expected = tensors(stopped), tensors(run)
    assert mine.keys() == expected.keys() and all(torch.equal(mine[name], expected[name]) for name in expected)


def test_resumed_with_other_lengths(adlight, gan_run):
    """The encoder may be trained on; the GAN may not, as the encoder has been trained on it."""
    run = adlight.folder / "runs" / "longer gan"
    shutil.copytree(gan_run[0], run, ignore=shutil.ignore_patterns("evaluations"))
    outcome = adlight("train", "resume='runs/longer gan'", "trainer.max_epochs=3")
    assert outcome.code == 2 and "AdversarialModule" in outcome.err and " 3" in outcome.err
    assert adlight("train", "resume='runs/longer gan'", "model.encoder_epochs=3").code == 0
    assert json.loads((run / "metrics.json").read_text())["epochs"] == 5
    assert [row["epoch"] for row in table(run / "metrics.csv")] == ["0", "1", "2"]
    assert (run / "pretraining.csv").read_bytes() == (gan_run[0] / "pretraining.csv").read_bytes()


def test_encoder_alone_on_a_finished_gan(adlight, gan_run):
    words = [*adlight.gan, "model.gan.ema=0.9", "seed=1", "dataset.seed=0", "model.pretrained_gan=runs/gan"]
    words += ["model.encoder_epochs=1", "~callbacks.panels"]
    run = adlight.train(*words, "hydra.run.dir=runs/encoder")
    found = json.loads((run / "metrics.json").read_text())
    assert found["epochs"] == 1 and found["generator_steps"] == 3
    mine, given = tensors(run), tensors(gan_run[0])
    for name in given:
        if name.startswith("gan."):
            assert torch.equal(mine[name], given[name]), name
        elif name.startswith("encoder"):
            assert not torch.equal(mine[name], given[name]), name
    assert not (run / "panels").exists() and not (run / "pretraining.csv").exists()  # nothing new to show
    again = adlight.evaluate(run)
    assert (again / "predictions.csv").read_bytes() == (run / "predictions.csv").read_bytes()


@pytest.mark.parametrize(
    "words",
    [
        "model.scorer.method=gradient model.scorer.steps=3 model.scorer.restarts=2",
        "model.scorer.method=encoder+gradient model.scorer.steps=3 model.scorer.kappa=1",
        "model.scorer.score=thesis",
        "model.scorer.weights.latent_norm=-1 model.scorer.feature=mse model.scorer.distance=ssim",
    ],
)
def test_other_scores_of_the_same_run(adlight, gan_run, words):
    folder = adlight.evaluate(gan_run[0], *words.split(), "~callbacks.panels")
    scores = [float(row["score"]) for row in table(folder / "predictions.csv")]
    assert len(set(scores)) == 20 and np.isfinite(scores).all()
    assert (folder / "predictions.csv").read_bytes() != (gan_run[0] / "predictions.csv").read_bytes()


SHORT = ["~callbacks.panels", "trainer.max_epochs=1", "model.encoder_epochs=1", "dataset.train_limit=8"]


@pytest.mark.parametrize("objective", ["wgan_gp", "wgan", "lsgan", "dcgan"])
def test_every_objective_trains(adlight, objective):
    run = adlight.train(*adlight.gan, *SHORT, f"model/gan/objective={objective}", "model.gan.n_critic=1")
    (row,) = table(run / "pretraining.csv")
    assert np.isfinite([float(row["train/critic"]), float(row["train/generator"])]).all()
    assert bool(row.get("train/penalty")) == (objective == "wgan_gp")


def test_without_an_encoder(adlight):
    """The detector has no epochs: it is calibrated, kept and tested."""
    words = ["model.encoder=null", "model.scorer.method=gradient", "model.scorer.steps=3", "hydra.run.dir=runs/search"]
    run = adlight.train(*adlight.gan, *SHORT, *words)
    assert not any(name.startswith("encoder") for name in tensors(run))
    assert tensors(run).keys() == tensors(run, "best").keys()
    again = adlight.evaluate(run)
    assert (again / "predictions.csv").read_bytes() == (run / "predictions.csv").read_bytes()
    assert json.loads((run / "metrics.json").read_text())["epochs"] == 1
    assert adlight("train", "resume=runs/search").code == 0
    assert (again / "predictions.csv").read_bytes() == (run / "predictions.csv").read_bytes()


def test_lengths(adlight):
    """What the stages make of trainer.max_epochs is said; a trial of two batches is short; the end is validated."""
    words = [*adlight.gan, "~callbacks.panels", "trainer.max_epochs=50", "model.encoder_epochs=3"]
    outcome = adlight("train", *words, "model.gan.generator_steps=3", "trainer.check_val_every_n_epoch=5")
    assert outcome.code == 0, outcome.err
    assert "AdversarialModule: 2 epochs" in outcome.out and "GANDetector: 3 epochs" in outcome.out
    run = adlight.train(*words, "model.gan.generator_steps=3000", "trainer=debug", "trainer.max_epochs=1")
    assert json.loads((run / "metrics.json").read_text())["epochs"] == 2


@pytest.fixture(scope="module")
def two_gans(adlight):
    """A run of two processes: its folder and what it printed."""
    words = [*adlight.gan, *SHORT, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    words += ["dataset.train_limit=16", "dataset.test_limit=19", "model.gan.n_critic=1"]
    out = in_processes(adlight, "train", *words, "hydra.run.dir=runs/two gans")
    return adlight.folder / "runs" / "two gans", out


def assert_the_same_answers(one, other, tolerance):
    """Each test image is there once, with the same score and threshold."""
    rows, others = (table(run / "predictions.csv") for run in (one, other))
    assert len(rows) == 19 and [row["path"] for row in rows] == [row["path"] for row in others]
    for mine, its in zip(rows, others, strict=True):
        for name in ("score", "threshold"):
            assert np.isfinite(float(mine[name])), name
            assert float(mine[name]) == pytest.approx(float(its[name]), abs=tolerance), name
    assert numbers(one).keys() == numbers(other).keys()


ALONE = ("trainer.devices=1", "trainer.strategy=auto")


def test_two_processes(adlight, two_gans):
    two, out = two_gans
    assert out.count("test results") == 1
    one = adlight.evaluate(two, *ALONE)
    assert_the_same_answers(two, one, 1e-5)
    assert numbers(two)["auroc"] == pytest.approx(numbers(one)["auroc"], abs=1e-6)
    assert json.loads((two / "metrics.json").read_text())["generator_steps"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "score", "tolerance"), [("gradient", "thesis", 1e-5), ("encoder+gradient", "mixture", 1e-4)]
)
def test_two_processes_search_as_one_does(adlight, two_gans, method, score, tolerance):
    """Calibrated anew, tested on 10 and 9 images or on 19.

    The mixture divides its terms by their deviations on two images, below 1e-3 for a GAN that has hardly begun, and the
    last bits of its terms with them.
    """
    run, folder = two_gans[0], f"runs/two search, {method}"
    words = [f"model.scorer.{word}" for word in (f"method={method}", f"score={score}", "steps=3", "lr=0.5")]
    words.append("model.scorer.weights={residual:1,latent_norm:1,feature:1}")
    in_processes(adlight, "evaluate", "run=runs/two gans", *words, f"hydra.run.dir='{folder}'")
    one = adlight.evaluate(run, *ALONE, *words)
    assert_the_same_answers(adlight.folder / folder, one, tolerance)
    other = adlight.evaluate(run, *ALONE, *words, "model.scorer.seed=1", "model.scorer.steps=2")
    scores = [[float(row["score"]) for row in table(folder / "predictions.csv")] for folder in (one, other)]
    assert max(abs(np.subtract(*scores))) > 50 * tolerance  # another search would have been noticed
