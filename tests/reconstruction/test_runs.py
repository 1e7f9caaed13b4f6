"""The papers' other systems through the command line: trained, evaluated, used, stopped and resumed like all."""

import json

import pytest
import torch
from gan.tiny import stop_and_resume
from pytorch_lightning import LightningModule
from readers import numbers, table

from adlight.detector import Detector

STOPPABLE = "+callbacks.stop._target_=gan.tiny.CtrlC"
SMALL = [
    *("dataset=mvtec", "dataset.root=data", "trainer=cpu", "trainer.max_epochs=2", "~callbacks.gallery"),
    *("dataset.image_size=32", "dataset.batch_size=4", "dataset.category=bottle", STOPPABLE),
]
UNET = ("model.network.width=4", "model.network.depth=2")
BACKBONE = ("model.backbone.name=resnet18", "model.backbone.layers=[layer1,layer2]", "model.backbone.weights=random")
MODELS = {
    "autoencoder": ["model=autoencoder", *UNET],
    "conv": ["model=autoencoder", "model/network=conv", *UNET],
    "vae": ["model=vae", *UNET, "model.network.latent=4"],
    "dagan": [
        "model=dagan",
        *(f"model.{one}.{key}" for one in ("generator", "discriminator") for key in ("width=4", "depth=2")),
    ],
    "mkd": ["model=mkd", *BACKBONE, "model.backbone.min_size=1", "model.network.width=4"],
}
CLASSES = {"vae": "VAEModule", "dagan": "DAGANModule", "mkd": "MKDModule"}


@pytest.fixture(scope="module")
def runs(adlight):
    return {name: adlight.train(*words, *SMALL, f"hydra.run.dir=runs/{name}") for name, words in MODELS.items()}


@pytest.mark.parametrize("name", MODELS)
def test_evaluate_predict_detector(adlight, runs, name, monkeypatch):
    run = runs[name]
    again = adlight.evaluate(run)
    assert (again / "predictions.csv").read_bytes() == (run / "predictions.csv").read_bytes()
    assert (run / "panels" / "bottle.png").is_file()
    outcome = adlight("predict", f"run={run}", "images=data/bottle/test/hole", f"hydra.run.dir=predicted/{name}")
    assert outcome.code == 0, outcome.err
    monkeypatch.chdir(adlight.folder)
    rows = table(run / "predictions.csv")
    detector = Detector.load(run, device="cpu")
    assert not isinstance(detector.module, LightningModule)
    answers = detector([row["path"] for row in rows])
    assert [one.score for one in answers] == pytest.approx([float(row["score"]) for row in rows], rel=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_training_moves_every_weight(runs, name):
    checkpoints = [
        torch.load(runs[name] / "checkpoints" / f"{one}.ckpt", weights_only=True) for one in ("best", "last")
    ]
    states = checkpoints[1]["optimizer_states"]
    assert len(states) == (2 if name == "dagan" else 1)
    for state in states:
        assert state["state"] and all(float(one["exp_avg_sq"].sum()) > 0 for one in state["state"].values())
    assert not [key for key in checkpoints[1]["state_dict"] if "backbone" in key]
    losses = [
        {key: float(row[key]) for key in row if key.startswith("train/")} for row in table(runs[name] / "metrics.csv")
    ]
    key = "train/generator" if name == "dagan" else "train/loss"
    assert losses[1][key] < losses[0][key]


@pytest.mark.parametrize("name", ["vae", "dagan", "mkd"])  # noise; two optimizers; a ratio of the first batch
def test_a_stopped_run_ends_as_if_it_had_not_been(adlight, runs, name):
    stopped = stop_and_resume(adlight, (CLASSES[name], 1), [*MODELS[name], *SMALL], f"runs/stopped_{name}")
    for file in ("predictions.csv", "metrics.csv"):
        assert (stopped / file).read_bytes() == (runs[name] / file).read_bytes(), file
    assert numbers(stopped) == numbers(runs[name])


def test_other_scores_need_no_training(adlight, runs):
    kinds = {
        "vae": ["model.scorer.method=elbo", "model.scorer.method=gradient"],
        "mkd": ["model.scorer.localization=gradient", "model.scorer.reduce=topk"],
        "dagan": ["model.scorer.score=ssim"],
    }
    for name, settings in kinds.items():
        found = [adlight.evaluate(runs[name], one) for one in settings]
        scores = [
            tuple(row["score"] + row["area"] for row in table(one / "predictions.csv")) for one in [runs[name], *found]
        ]
        assert len(set(scores)) == len(scores), name
        assert all(json.loads((one / "metrics.json").read_text())["threshold"] for one in found)


def test_padding_is_refused(adlight):
    outcome = adlight("train", *MODELS["vae"], *SMALL, "dataset.keep_shape=true", "hydra.run.dir=refused_padding")
    assert outcome.code == 2 and "dataset.keep_shape" in outcome.err and "Traceback" not in outcome.err
