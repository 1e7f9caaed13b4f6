"""Detectors without their trainings: the same tensors by the same names, for every model."""

import inspect
from pkgutil import resolve_name

import pytest
import pytorch_lightning as pl
from makers import composed
from omegaconf import OmegaConf

from adlight.detection.detector import AnomalyDetector
from adlight.runs.config import CONF, drop_objective, instantiate_node
from adlight.runs.restore import DETECTORS, without_training
from adlight.runs.targets import build
from adlight.types import UserError

MODELS = sorted(path.stem for path in (CONF / "model").glob("[!_]*.yaml"))
BACKBONE = ["model.backbone.name=test_resnet", "model.backbone.layers=[0,1]", "model.backbone.weights=random"]


def config_of(model, *words):
    words = [f"model={model}", "dataset=mvtec", "image_size=64", "dataset.image_size=64", *words]
    found = composed(*words)
    if "backbone" in found.model:
        found = composed(*words, *BACKBONE)
    drop_objective(found)
    return found


@pytest.mark.parametrize("model", MODELS)
def test_a_detector_has_the_tensors_of_its_training(model):
    config = config_of(model)
    node = without_training(OmegaConf.to_container(config.model, resolve=True))
    detector, module = build(node, "model"), instantiate_node(config.model)
    assert isinstance(detector, AnomalyDetector) and isinstance(module, type(detector))
    assert not any(isinstance(part, pl.LightningModule) for part in detector.modules())
    mine, other = detector.state_dict(), module.state_dict()
    shapes = [{name: getattr(value, "shape", None) for name, value in found.items()} for found in (mine, other)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("training", DETECTORS)
def test_a_training_is_a_detector(training):
    made, detector = resolve_name(training), resolve_name(DETECTORS[training])
    assert issubclass(made, detector)
    assert inspect.signature(detector).parameters.keys() <= inspect.signature(made).parameters.keys()


def test_a_refused_setting_is_named():
    node = {"_target_": "adlight.features.scorer.CellScorer", "topk": 2.0}
    with pytest.raises(UserError, match=r"model\.scorer\.topk"):
        build({"scorer": node}, "model")
    size = {"_target_": "adlight.mae.tokens.PixelTokenizer", "image_size": 30}
    with pytest.raises(UserError, match=r"model\.tokenizer: .*30.*patch_size"):
        build({"tokenizer": size}, "model")
