"""Rebuild the detector of a finished run, without what only its training needs."""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adlight.runs.config import CONF, INPUT_KEYS, drop_objective, require_nodes
from adlight.runs.folder import RunFolder
from adlight.runs.overrides import changes_scores, explain_config
from adlight.runs.targets import KEYWORDS, build
from adlight.runs.trust import check_interpolations, check_targets, find_targets
from adlight.runs.weights import load_weights
from adlight.types import UserError

if TYPE_CHECKING:  # torch takes seconds: not for --help
    from adlight.detection.detector import AnomalyDetector

DETECTORS = {  # by training module, whose node holds the arguments of both
    "adlight.baselines.module.BaselineModule": "adlight.baselines.detector.BaselineDetector",
    "adlight.baselines.module.ResidualScorer": "adlight.baselines.detector.ResidualScorer",
    "adlight.distillation.module.MKDModule": "adlight.distillation.scorer.MKDDetector",
    "adlight.features.module.FeatureModule": "adlight.features.detector.FeatureDetector",
    "adlight.gan.encoder.GANDetector": "adlight.gan.detector.InversionDetector",
    "adlight.gan.module.AdversarialModule": "adlight.gan.detector.GAN",
    "adlight.learning.module.LearnedModule": "adlight.learning.detector.LearnedDetector",
    "adlight.mae.module.MAEModule": "adlight.mae.scorer.MAEDetector",
    "adlight.reconstruction.dagan.DAGANModule": "adlight.reconstruction.detector.DAGANDetector",
    "adlight.reconstruction.module.AutoencoderModule": "adlight.reconstruction.detector.AutoencoderDetector",
    "adlight.reconstruction.module.VAEModule": "adlight.reconstruction.detector.VAEDetector",
    "adlight.rotation.module.RotationModule": "adlight.rotation.detector.RotationDetector",
}
ONE_DEVICE = {"devices": 1, "num_nodes": 1, "strategy": "auto", "enable_progress_bar": False}


def restore(
    run: str | Path, ckpt: str | Path | None, overrides: Sequence[str], inputs: Mapping[str, Any]
) -> tuple["AnomalyDetector", dict[str, Any], bool]:
    """Rebuild a run's detector and load its weights.

    Args:
        run: the folder of a run or evaluation.
        ckpt: see `Detector.load`.
        overrides: overrides of the run's config.
        inputs: settings that replace the run's unless they are None.

    Returns:
        The detector, the settings for preparing an image, and whether the thresholds are still valid.

    Raises:
        UserError: the run or checkpoint does not exist, or the checkpoint is of another architecture.
    """
    from adlight.data.tiling import make_tiling  # takes time to import: not for --help

    folder = RunFolder(run)
    module, settings = build_module(folder, overrides)
    tested = settings.pop("ckpt")
    path, changes = find_weights(folder, str(ckpt or tested))
    load_weights(module, path, changes=changes)
    run_tiles, had_roi = (settings["tile"], settings["overlap"]), settings["roi"] is not None
    settings |= {name: value for name, value in inputs.items() if value is not None}
    tiles = settings.pop("tile"), settings.pop("overlap")
    if inputs.get("overlap") is not None and tiles[0] is None:
        raise UserError("overlap is for tiles, and this run has none: set tile too, or leave overlap out")
    try:
        settings["tiling"] = make_tiling(*tiles, settings["image_size"])
    except ValueError as error:
        raise UserError(str(error)) from error
    # the border of a region is an anomaly for a model that has never seen one
    same_inputs = tiles == run_tiles and (had_roi or settings["roi"] is None)
    return module, settings, same_inputs and not changes_scores(overrides)


def build_module(run: RunFolder, overrides: Sequence[str] = ()) -> tuple["AnomalyDetector", dict[str, Any]]:
    """Build a run's detector without weights and without optimizers, LPIPS and Lightning.

    Returns:
        The detector, and the settings for preparing an image: `image_size`, `resize`, `keep_shape`, `channels`, `roi`,
        `tile`, `overlap`, `precision`, and `ckpt`, the checkpoint that the run tested.

    Raises:
        UserError: this is not a run folder, or an override does not fit.
    """
    nodes, settings = read_detector(run, overrides)
    module = build(nodes["model"], "model")
    module.calibration = build(nodes["calibration"], "calibration")
    return module, settings


def read_detector(run: RunFolder, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the nodes of a run's detector, which are checked, and the settings for preparing an image.

    See `build_module`.
    """
    config = _read_config(run, overrides)
    drop_objective(config)
    inputs = {name: config.dataset.get(name) for name in INPUT_KEYS}  # resolved here, as they refer to other settings
    settings: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(inputs))  # type: ignore[assignment]
    settings |= {"precision": str(config.trainer.precision), "ckpt": config.ckpt}
    nodes = {name: OmegaConf.to_container(config[name], resolve=True) for name in ("model", "calibration")}
    nodes = without_training(nodes)
    check_targets(find_targets(nodes), run.config_path)
    return nodes, settings


def _read_config(run: RunFolder, overrides: Sequence[str]) -> DictConfig:
    """Read a run's config without Hydra unless there are overrides; all its interpolations are checked."""
    if not overrides:
        config = run.read_training()
        check_interpolations(config, run.config_path)
        return config
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    is_initialized = GlobalHydra.instance().is_initialized()
    with nullcontext() if is_initialized else initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return run.config(overrides)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(explain_config(error)) from error


def without_training(node: Any) -> Any:
    """Replace the training modules among nested nodes by their detectors."""
    if isinstance(node, list):
        return [without_training(item) for item in node]
    if not isinstance(node, dict):
        return node
    if (target := DETECTORS.get(str(node.get("_target_")))) is not None:
        names = (*inspect.signature(resolve_name(target)).parameters, *KEYWORDS)
        node = {name: value for name, value in node.items() if name in names} | {"_target_": target}
    return {name: without_training(value) for name, value in node.items()}


def frozen_config(run: RunFolder, device: str = "auto", root: str | None = None) -> DictConfig:
    """Read a run's config for using its detector on one device: without objective, loggers and callbacks.

    Args:
        run: the run.
        device: one of Lightning's accelerators, such as `cpu` or `gpu`; `auto` prefers a GPU.
        root: folder of the data set; None for the same as in training.
    """
    config = run.config()
    OmegaConf.set_struct(config, False)
    require_nodes(config)
    drop_objective(config)
    if root is not None:
        config.dataset.root = root
    config.logger = config.callbacks = None
    config.trainer.update({**ONE_DEVICE, "accelerator": device})
    return config


def find_weights(folder: RunFolder, ckpt: str) -> tuple[Path, Path | None]:
    """Find the weights of a run or evaluation. -> the run's checkpoint, and what the evaluation fitted anew.

    The folder of an evaluation has the run's config with the evaluation's changes and `run`, and a checkpoint with
    thresholds, tensors that differ from the run's checkpoint, and that checkpoint's hash.

    Raises:
        UserError: one of them is missing, or the evaluation's thresholds are for another checkpoint than `ckpt`.
    """
    config = folder.read_training()
    if "run" not in config:
        return folder.checkpoint(ckpt), None
    run = RunFolder(folder.evaluated(config).path)
    if ckpt != config.ckpt:
        raise UserError(f"ckpt={ckpt}: the thresholds of {folder} are for ckpt={config.ckpt}: leave ckpt out")
    if not folder.calibrated_checkpoint.is_file():
        raise UserError(f"{folder.calibrated_checkpoint} does not exist: evaluate {run} again")
    if not run.is_run:
        raise UserError(f"{folder} is an evaluation of {run}, whose weights it needs, but there is no run")
    return run.checkpoint(ckpt), folder.calibrated_checkpoint


def require_run(folder: RunFolder) -> None:
    """Raise a UserError if a folder is not a run but an evaluation or prediction of one, or no run at all."""
    if "run" in (config := folder.read_config()):
        raise UserError(f"{folder} is not a run but belongs to {folder.evaluated(config)}: name that")
