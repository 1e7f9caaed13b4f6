"""An evaluation as a detector: its config and what it fitted anew lie in its folder, all other weights in its run.

<run>/evaluations/<time>/
    .hydra/config.yaml             the run's config with the evaluation's changes, and `run`
    checkpoints/calibrated.ckpt    thresholds, tensors that differ from the run's checkpoint, and that checkpoint's hash
"""

from os.path import abspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from adlight.runs.config import instantiate_node
from adlight.runs.folder import RunFolder
from adlight.runs.weights import write_changes
from adlight.types import UserError

if TYPE_CHECKING:  # torch takes seconds: not for --help
    from adlight.data.datamodule import AnomalyDataModule
    from adlight.detection.module import AnomalyModule


def write_evaluation(
    folder: RunFolder,
    run: RunFolder,
    config: DictConfig,
    choices: dict[str, Any],
    module: "AnomalyModule",
    checkpoint: Path,
) -> None:
    """Write what makes the folder of an evaluation a detector.

    Args:
        folder: where the evaluation is written.
        run: the run that was evaluated.
        config: the run's config with the evaluation's changes.
        choices: the run's choices of config groups.
        module: the module that was tested.
        checkpoint: the weights that were loaded before thresholds were calibrated anew.
    """
    from hydra.core.hydra_config import HydraConfig

    write_changes(folder.calibrated_checkpoint, module.state_dict(), checkpoint)
    config.run = str(run.path.absolute())
    folder.write_composed(config, {**choices, **HydraConfig.get().runtime.choices})


def describe_trained(run: RunFolder, data: "AnomalyDataModule") -> list[str]:
    """Describe normal images of an evaluation on which the run was trained: they look more normal than new ones.

    Another `val_fraction`, seed or folder of normal images splits the images anew.
    """
    from adlight.data.splits import split_normals

    try:
        own = instantiate_node(run.config().dataset)
        trained = {abspath(record.path) for record in split_normals(own.source.train(), own.val_fraction, own.seed)[0]}
    except UserError:  # the run's images are no longer there
        return []
    lines = []
    for split, use in (("val", "calibrated on"), ("test", "tested")):
        normals = [abspath(record.path) in trained for record in data.datasets[split].records if not record.label]
        if any(normals):
            count = f"{sum(normals)} of {len(normals)} normal images {use}"
            lines.append(f"{count} are training images of {run}: new images may score higher")
    return lines


def find_weights(folder: RunFolder, ckpt: str) -> tuple[Path, Path | None]:
    """Find the weights of a run or evaluation. -> the run's checkpoint, and what the evaluation fitted anew.

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
