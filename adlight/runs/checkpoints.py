"""A stage's checkpoints: the weights of the best validation, and the full state of the last epoch."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pydantic import NonNegativeFloat, PositiveInt
from pytorch_lightning.callbacks import Checkpoint

from adlight.runs.tables import OBJECTIVE
from adlight.runs.weights import put_in_place
from adlight.settings import checked
from adlight.types import UserError


class BestAndLast(Checkpoint):
    """Keep the weights of the best validation, by `val/auroc`, and the full state of the last epoch.

    Of several equally good epochs, Lightning's ModelCheckpoint keeps the first; this callback keeps the latest, which
    was trained longest. ModelCheckpoint also writes to the system's temporary folder first: if that is on another disk,
    the file is copied rather than renamed, and a crash would leave half a file.

    Args:
        last: file for the last epoch, to resume from.
        best: file for the best validation; None if nothing is validated.
        every_n_epochs: interval at which `last` is written; it is always written after the final epoch.
        seconds: training time of earlier stages.

    Attributes:
        begin: called before each checkpoint is written.
        best_value: the best value so far; -inf if there is none.
    """

    @checked
    def __init__(
        self,
        last: Path,
        best: Path | None = None,
        every_n_epochs: PositiveInt = 1,
        seconds: NonNegativeFloat = 0.0,
    ) -> None:
        self.last, self.best, self.every_n_epochs = last, best, every_n_epochs
        self.best_value = float("-inf")
        self.begin: Callable[[], None] = lambda: None
        self.earlier_seconds, self.started = seconds, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Training time of the run, including that before it was resumed."""
        return self.earlier_seconds + time.perf_counter() - self.started

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint."""
        return {"best": self.best_value, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.best_value, self.earlier_seconds = state_dict["best"], state_dict["seconds"]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the weights unless an earlier epoch was better; without a training, save the full state too."""
        value = float(trainer.callback_metrics.get(OBJECTIVE, self.best_value))  # without it, the latest is best
        if self.best is not None and value >= self.best_value:
            self.best_value = value
            self._save(trainer, self.best, weights_only=True)
        if trainer.state.fn == "validate":
            self._save(trainer, self.last)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's row of the curves, then save the full state, so that a kill in between loses no row.

        Lightning itself writes the row only after all callbacks; if an epoch is trained again, its row is replaced.
        """
        epoch = trainer.current_epoch + 1
        if epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs:
            logged = {name: float(value) for name, value in trainer.logged_metrics.items() if name[:4] != "val/"}
            for logger in trainer.loggers:
                if hasattr(logger, "write_row"):
                    step = trainer.fit_loop.epoch_loop._batches_that_stepped - 1  # the step that Lightning logs
                    logger.write_row(trainer.current_epoch, step, logged)
            self._save(trainer, self.last)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise a UserError if no epoch was completed, as nothing is calibrated then."""
        if not trainer.current_epoch:
            raise UserError("the training ended before its first epoch was complete: leave out trainer.max_time")

    def _save(self, trainer: pl.Trainer, path: Path, weights_only: bool = False) -> None:
        self.begin()
        save(trainer, path, weights_only)


def save(trainer: pl.Trainer, path: Path, weights_only: bool = False) -> None:
    """Write a checkpoint to a new file and rename it; every process must call this, the first one writes."""
    partial = path.with_suffix(".part")
    try:
        trainer.save_checkpoint(partial, weights_only)
        if trainer.is_global_zero:
            put_in_place(partial, path)
    except OSError:
        if trainer.is_global_zero:
            partial.unlink(missing_ok=True)  # the disk may be full
        raise


def trained_epochs(path: Path) -> int:
    """Read the number of completed epochs from a checkpoint; raise a UserError if it holds only weights."""
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    try:
        return int(state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path} has no training state to resume from: train a new run") from error
