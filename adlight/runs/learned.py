"""What a run has learned from labels: a folder inside it, <run>/learned/<time>/, that is a run itself."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from adlight.runs.config import drop_objective
from adlight.runs.folder import RunFolder
from adlight.runs.verification import put_in_place
from adlight.types import UserError

MODULE = "adlight.learning.module.LearnedModule"
CALIBRATION = "adlight.learning.calibration.LabelledCalibration"


def learned_config(saved: DictConfig, **settings: Any) -> DictConfig:
    """Make the config of a learned detector of its run's; `settings` are those of `LearnedModule`."""
    config = saved.copy()
    OmegaConf.set_struct(config, False)
    drop_objective(config)
    detector = OmegaConf.to_container(config.model, resolve=True)  # some of its values name others by their place
    config.model = {"_target_": MODULE, "detector": detector, **settings}
    config.calibration._target_ = CALIBRATION
    config.calibration.asked = None
    config.ckpt = "best"
    return config


def write_learned(
    folder: RunFolder, run: RunFolder, config: DictConfig, state: dict[str, Any], metadata: dict[str, Any]
) -> None:
    """Write a learned detector into a folder, its config last, which marks it as a run."""
    import torch

    path = folder.best_checkpoint
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    torch.save({"state_dict": state}, partial)
    put_in_place(partial, path)
    folder.begin(metadata)
    folder.write_like(run, config)


def origin_of(run: RunFolder) -> RunFolder:
    """Find the run whose labels a run learns from: itself or, of a learned one, the one that it lies in.

    Raises:
        UserError: no run, or a learned one that does not lie in the run it came from.
    """
    if run.config().model.get("_target_") != MODULE:
        return run
    origin = RunFolder(run.path.resolve().parents[1])
    if not origin.is_run:
        raise UserError(f"{run} has learned from labels of another run, which it does not lie in: name that run")
    return origin
