"""Two processes fit what one does, and what is trained is the same in both."""

import pytest
import torch
from processes import in_processes
from readers import content, scores, table

TINY = [
    *("dataset=mvtec", "dataset.root=data", "dataset.category=bottle", "dataset.image_size=64", "dataset.batch_size=3"),
    *("model.backbone.name=resnet18", "model.backbone.layers=[layer1,layer2]", "model.backbone.weights=random"),
    *("model.backbone.min_size=1", "model.clusters=2", "model.predictors.retrieval.neighbours=3", "trainer=cpu"),
    *("model=ensemble", "model.cache=features of two", "~callbacks.panels"),
    *(f"model.predictors.{name}.{key}" for name in ("neighbour", "complementary") for key in ("width=16", "heads=2")),
]
FITTED, TRAINED = "retrieval,patchcore,subspace", "neighbour,complementary"


def in_two(adlight, name, *words):
    folder = adlight.folder / "runs" / f"features in {name}"
    devices = ["trainer.devices=2", "trainer.strategy=ddp"]
    in_processes(adlight, "train", *TINY, *words, *devices, f"hydra.run.dir='{folder}'")
    return folder


def thresholds(run):
    return [content(run)[name] for name in ("threshold", "pixel_threshold")]


def test_what_is_fitted_is_what_one_process_fits(adlight):
    """Five training images and nine test images, neither of which two processes can share evenly."""
    words = [f"model.members=[{FITTED}]", "trainer.max_epochs=1"]
    two, one = in_two(adlight, "two", *words), adlight.train(*TINY, *words)
    assert scores(two) == pytest.approx(scores(one), rel=1e-6)
    paths = [[row["path"] for row in table(run / "predictions.csv")] for run in (one, two)]
    assert paths[0] == paths[1] and len(paths[0]) == 9
    assert thresholds(two) == pytest.approx(thresholds(one), rel=1e-6)
    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (two, one)]
    assert {name.split(".")[1] for name in states[0] if name.startswith("predictors.")} == set(FITTED.split(","))
    for name, tensor in states[1].items():
        if isinstance(tensor, torch.Tensor):
            torch.testing.assert_close(states[0][name], tensor, rtol=1e-6, atol=1e-6)


def test_what_is_trained_is_the_same_in_both(adlight):
    """Both score the held-out images, each its own: one process alone finds the same thresholds afterwards."""
    two = in_two(adlight, "training", f"model.members=[{TRAINED}]", "trainer.max_epochs=2")
    losses = [float(row["train/loss"]) for row in table(two / "metrics.csv")]
    assert len(losses) == 2 and all(0 < loss < 10 for loss in losses)
    again = adlight.evaluate(two, "trainer.devices=1", "trainer.strategy=auto", "dataset.eval_batch_size=4")
    assert scores(again) == pytest.approx(scores(two), rel=1e-5)
    assert thresholds(again) == pytest.approx(thresholds(two), rel=1e-5)
