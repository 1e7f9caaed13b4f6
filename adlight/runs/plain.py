"""Detectors from saved nodes, without what only a training needs: no Lightning, no Hydra."""

import inspect
from functools import partial
from pkgutil import resolve_name
from typing import Any

from adlight.faults import describe_faults
from adlight.settings import SettingsError
from adlight.types import UserError

DETECTORS = {  # of the trainings, whose nodes hold the arguments of both
    "adlight.baselines.module.BaselineModule": "adlight.baselines.detector.BaselineDetector",
    "adlight.baselines.module.ResidualScorer": "adlight.baselines.detector.ResidualScorer",
    "adlight.distillation.module.MKDModule": "adlight.distillation.detector.MKDDetector",
    "adlight.features.module.FeatureModule": "adlight.features.detector.FeatureDetector",
    "adlight.gan.encoder.GANDetector": "adlight.gan.detector.InversionDetector",
    "adlight.gan.module.AdversarialModule": "adlight.gan.detector.GAN",
    "adlight.learning.module.LearnedModule": "adlight.learning.detector.LearnedDetector",
    "adlight.mae.module.MAEModule": "adlight.mae.detector.MAEDetector",
    "adlight.reconstruction.dagan.DAGANModule": "adlight.reconstruction.detector.DAGANDetector",
    "adlight.reconstruction.module.AutoencoderModule": "adlight.reconstruction.detector.AutoencoderDetector",
    "adlight.reconstruction.module.VAEModule": "adlight.reconstruction.detector.VAEDetector",
}
KEYWORDS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")


def without_training(node: Any) -> Any:
    """Let nodes of trainings make their detectors alone; other nodes stay as they are."""
    if isinstance(node, list):
        return [without_training(one) for one in node]
    if not isinstance(node, dict):
        return node
    if (target := DETECTORS.get(str(node.get("_target_")))) is not None:
        names = (*inspect.signature(resolve_name(target)).parameters, *KEYWORDS)
        node = {name: value for name, value in node.items() if name in names} | {"_target_": target}
    return {name: without_training(value) for name, value in node.items()}


def build(node: Any, key: str) -> Any:
    """Make what a trusted node of plain dicts and lists describes, as Hydra's `instantiate` does.

    Args:
        node: whose interpolations are resolved.
        key: its place in the config, for messages.

    Raises:
        UserError: a constructor refuses its arguments.
    """
    if isinstance(node, list):
        return [build(one, f"{key}.{i}") for i, one in enumerate(node)]
    if not isinstance(node, dict):
        return node
    values = {name: build(value, f"{key}.{name}") for name, value in node.items() if name not in KEYWORDS}
    if "_target_" not in node:
        return values
    target, more = resolve_name(node["_target_"]), build(node.get("_args_", []), f"{key}._args_")
    try:
        return partial(target, *more, **values) if node.get("_partial_") else target(*more, **values)
    except SettingsError as error:
        line = describe_faults(error.faults, error.values, lambda argument: f"{key}.{argument}")
        raise UserError(line) from error
    except ValueError as error:
        raise UserError(f"{key}: {str(error).splitlines()[0]}") from error
