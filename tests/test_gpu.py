"""Each model on a GPU: trained, resumed, evaluated, used and exported; and the CPU computes the same scores.

All of it is skipped where there is no GPU.
"""

import json

import pytest
import torch
from features.test_module import MODELS as ON_FEATURES
from features.test_module import TINY, model_of
from readers import scores
from reconstruction.test_runs import MODELS as COMPARATORS
from reconstruction.test_runs import SMALL
from rotation.test_rotation import TINY as ROTATION

from adlight.detector import Detector

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

GPU, CPU = ["trainer=gpu", "trainer.precision=32-true"], ["trainer=cpu", "trainer.precision=32-true"]
BASELINES = {"knn": "model.network.k=2", "idm": "model.network.k=2", "pca": "model.network.components=3"}


def settings(adlight):
    """The settings of a small training of each model, by name."""
    without = {"trainer=cpu", SMALL[-1]}  # SMALL ends with a callback that stops a training
    found = {"mae_small": adlight.quick, "gan": adlight.gan, "rotation": ROTATION}
    found |= {name: [model_of(name), *TINY, *words] for name, words in ON_FEATURES.items()}
    found |= {name: [*words, *SMALL] for name, words in COMPARATORS.items()}
    data = ["dataset=mvtec", "dataset.root=data", "dataset.image_size=32"]
    found |= {name: [f"model={name}", word, *data] for name, word in BASELINES.items()}
    return {name: [word for word in words if word not in without] for name, words in found.items()}


NAMES = ["mae_small", "gan", "rotation", *ON_FEATURES, *COMPARATORS, *BASELINES]
TRAINED = [name for name in NAMES if name not in {"retrieval", "patchcore", "dn2", "subspace", *BASELINES}]


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_path(adlight, name):
    """Both devices score the same images alike, to 1e-3."""
    run = adlight.train(*settings(adlight)[name], *GPU, f"hydra.run.dir=runs/gpu-{name}")
    for words in (GPU, CPU):
        again = adlight.evaluate(run, *words)
        assert scores(again) == pytest.approx(scores(run), rel=1e-3, abs=1e-6)
    folder = adlight.folder / "data" / "bottle" / "test" / "hole"
    first, second = (Detector.load(run, device=device)(sorted(folder.iterdir())) for device in ("cuda", "cpu"))
    assert [one.score for one in first] == pytest.approx([one.score for one in second], rel=1e-3, abs=1e-6)
    for command in (["predict", f"images={folder}", "device=cuda"], ["export"]):
        outcome = adlight(*command, f"run={run}", f"hydra.run.dir={command[0]}ed/gpu-{name}")
        assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_is_resumed(adlight, name):
    run = adlight.train(*settings(adlight)[name], *GPU, f"hydra.run.dir=runs/gpu-resumed-{name}")
    epochs = json.loads((run / "metrics.json").read_text())["epochs"]
    length = "model.encoder_epochs=3" if name == "gan" else "trainer.max_epochs=3"
    outcome = adlight("train", f"resume={run}", length)
    assert outcome.code == 0, outcome.err
    assert json.loads((run / "metrics.json").read_text())["epochs"] == epochs + 1


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", TRAINED)
def test_a_step_does_not_wait_for_the_gpu(adlight, name, precision):
    """After the first epoch, in which constants are made."""
    words = [*settings(adlight)[name], "trainer=gpu", f"trainer.precision={precision}"]
    adlight.train(*words, "+callbacks.trouble._target_=trouble.NoWaiting", f"hydra.run.dir=runs/{precision}-{name}")
