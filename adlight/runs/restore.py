"""Build a finished run's module again, and load its weights."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adlight.runs.config import CONF, INPUT_KEYS, changes_scores, drop_objective
from adlight.runs.folder import RunFolder
from adlight.runs.plain import build, without_training
from adlight.runs.trust import check_interpolations, check_targets, find_targets
from adlight.runs.verification import verify
from adlight.types import UserError

if TYPE_CHECKING:  # torch takes seconds: not for --help
    from torch import nn

    from adlight.detection.detector import AnomalyDetector


def build_module(run: RunFolder, overrides: Sequence[str] = ()) -> tuple["AnomalyDetector", dict[str, Any]]:
    """Build a run's detector without weights, and without what only its training needs: optimizers, LPIPS, Lightning.

    Returns:
        The detector, and the settings that an image needs on its way to it: `image_size`, `resize`,
        `keep_shape`, `channels`, `roi`, `tile`, `overlap`, `precision`, and `ckpt`, which the run itself tested.

    Raises:
        UserError: the folder holds no run, or an override does not fit.
    """
    config = _read(run, overrides)
    drop_objective(config)
    inputs = {name: config.dataset.get(name) for name in INPUT_KEYS}  # resolved here, where the others are known
    settings: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(inputs))  # type: ignore[assignment]
    settings |= {"precision": str(config.trainer.precision), "ckpt": config.ckpt}
    nodes = {name: OmegaConf.to_container(config[name], resolve=True) for name in ("model", "calibration")}
    nodes = without_training(nodes)
    check_targets(find_targets(nodes), run.config_path)
    module = build(nodes["model"], "model")
    module.calibration = build(nodes["calibration"], "calibration")
    return module, settings


def restore(
    run: str | Path, ckpt: str | Path | None, overrides: Sequence[str], inputs: Mapping[str, Any]
) -> tuple["AnomalyDetector", dict[str, Any], bool]:
    """Build a run's detector with its weights.

    Args:
        run: the run folder.
        ckpt: see `Detector.load`.
        overrides: of the run's config.
        inputs: settings in place of the run's, None where the run's hold.

    Returns:
        The detector, the settings that an image needs, and whether its thresholds hold for what was changed.

    Raises:
        UserError: no run, no checkpoint, or one of another architecture.
    """
    from adlight.data.tiling import make_tiling  # it takes time to import: not for --help

    folder = RunFolder(run)
    module, settings = build_module(folder, overrides)
    load_weights(module, folder.checkpoint(str(ckpt or settings["ckpt"])))
    changed = {name: value for name, value in inputs.items() if value is not None}
    tiles = [(settings["tile"], settings["overlap"])]
    del settings["ckpt"]
    settings |= changed
    tiles.append((settings.pop("tile"), settings.pop("overlap")))
    if changed.get("overlap") is not None and tiles[1][0] is None:
        raise UserError("overlap is of tiles, and this run has none: set tile too, or leave overlap out")
    try:
        settings["tiling"] = make_tiling(*tiles[1], settings["image_size"])
    except ValueError as error:
        raise UserError(str(error)) from error
    return module, settings, not changes_scores(overrides) and tiles[0] == tiles[1]


def _read(run: RunFolder, overrides: Sequence[str]) -> DictConfig:
    """Read a run's config, which is not trusted."""
    if not overrides:
        config = run.read_training()
        check_interpolations(config, run.config_path)
        return config
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    from adlight.runs.explanation import explain_config

    initialized = GlobalHydra.instance().is_initialized()
    with nullcontext() if initialized else initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return run.config(overrides)  # a changed group is composed anew, which needs our conf/
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(explain_config(error)) from error


def load_weights(module: "nn.Module", path: Path, prefixes: tuple[str, ...] = ("",)) -> None:
    """Load a checkpoint's tensors whose names begin with one of `prefixes` into a module built from the run's config.

    Raises:
        UserError: no checkpoint, a damaged one, or one of another architecture.
    """
    import torch

    verify(path)
    try:
        state = dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
    except Exception as error:  # pickle, zip and key errors alike: the file is no checkpoint of ours
        raise _unreadable(path, error) from error
    for name, buffer in module.named_buffers():
        if buffer.shape[:1] == (0,) and name in state and state[name].shape[1:] == buffer.shape[1:]:
            buffer.resize_(state[name].shape)  # empty until fitted: as many rows as there were training images
    expected = {name: value for name, value in module.state_dict().items() if name.startswith(prefixes)}
    found = {name: value for name, value in state.items() if name.startswith(prefixes)}
    for name in sorted(expected.keys() | found.keys()):
        there, here = (_describe(tensors, name) for tensors in (found, expected))
        if there != here:
            advice = "; set ema as it was there" if "ema." in name else ""
            raise UserError(
                f"checkpoint {path} is of another architecture: {name} {there} in it and {here} in the model of this "
                f"config{advice}"
            )
    try:
        module.load_state_dict({**module.state_dict(), **found})
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # the thresholds in it
        raise _unreadable(path, error) from error


def _describe(tensors: dict[str, Any], name: str) -> str:
    if name not in tensors:
        return "is missing"
    value = tensors[name]  # the thresholds beside the weights have no shape
    return f"is {value.dtype} of shape {tuple(value.shape)}" if hasattr(value, "shape") else f"is a {type(value)}"


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read as a checkpoint ({type(error).__name__}): train anew or name another")
