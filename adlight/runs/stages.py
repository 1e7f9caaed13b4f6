"""What a training consists of: its stages, how long each is, and where a resumed run continues."""

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig

from adlight.runs.config import check_same_split
from adlight.runs.folder import RunFolder
from adlight.runs.restore import load_weights
from adlight.types import UserError

if TYPE_CHECKING:  # torch takes seconds: not for --help
    import pytorch_lightning as pl

    from adlight.data.datamodule import AnomalyDataModule
    from adlight.detection.module import AnomalyModule


class Stage(NamedTuple):
    """A part of a training that has its own Trainer, curve and checkpoint; the last one is the detector's.

    Attributes:
        module: what is trained.
        epochs: how long; 0 = it is only validated, which calibrates it.
        last: checkpoint of its last epoch.
        best: checkpoint of its best validation; None where nothing is validated.
        resumed: whether it continues from `last`.
    """

    module: "pl.LightningModule"
    epochs: int
    last: Path
    best: Path | None
    resumed: bool


def plan_stages(
    config: DictConfig,
    run: RunFolder,
    data: "AnomalyDataModule",
    module: "AnomalyModule",
    trainer: "pl.Trainer",
    resumed: bool,
) -> list[Stage]:
    """Find out what is trained and how long, and load the weights that there are already.

    Raises:
        UserError: a checkpoint does not fit, or a stage has been trained longer than it is to be, or is over.
    """
    from adlight.runs.checkpoints import trained_epochs

    stages = [Stage(module, 0, run.last_checkpoint, run.best_checkpoint, False)]
    if module.pretraining is not None:
        stages.insert(0, Stage(module.pretraining, 0, run.stage_checkpoint, None, False))
    elif not resumed and module.pretrained is not None:
        source = RunFolder(module.pretrained.run)
        load_weights(module, source.checkpoint("last"), (module.pretrained.prefix,))
        check_same_split(config, source.read_config(), str(source))
    for i, stage in enumerate(stages):
        training: Any = stage.module
        epochs = training.num_epochs(config.trainer.max_epochs, partial(_count_batches, run, data, trainer))
        if isinstance(config.trainer.limit_train_batches, int):  # a short trial
            epochs = min(epochs, config.trainer.max_epochs)
        stages[i] = stage._replace(epochs=epochs, resumed=resumed and stage.last.exists())
        if epochs != config.trainer.max_epochs and trainer.is_global_zero:
            print(f"{type(stage.module).__name__}: {epochs} epochs (trainer.max_epochs does not apply)", flush=True)
        if stages[i].resumed:
            load_weights(stage.module, stage.last)  # Lightning's own words for a damaged file fill a screen
            done, is_over = trained_epochs(stage.last), any(later.last.exists() for later in stages[i + 1 :])
            if done > epochs or (is_over and done < epochs):
                raise UserError(f"{done} epochs of {type(stage.module).__name__} are done: it cannot have {epochs}")
    return stages


def _count_batches(run: RunFolder, data: "AnomalyDataModule", trainer: "pl.Trainer") -> int:
    """Count the batches of an epoch in each process."""
    with run.data_lock():  # the processes of the run do not know of each other yet
        data.prepare_data()
    data.setup("fit")
    images = math.ceil(len(data.records("train")) / trainer.world_size)
    batches = math.ceil(images / data.batch_size)
    limit = trainer.limit_train_batches
    return batches if isinstance(limit, int) else int(batches * limit)
