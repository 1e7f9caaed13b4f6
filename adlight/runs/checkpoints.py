"""A stage's checkpoints: the weights of the best validation, and the full state of the last epoch."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pydantic import NonNegativeFloat, PositiveInt
from pytorch_lightning.callbacks import Checkpoint

from adlight.runs.verification import put_in_place
from adlight.settings import checked
from adlight.types import UserError


class BestAndLast(Checkpoint):
    """Keep the weights of the best validation, by `val/auroc`, and the full state of the last epoch.

    Lightning's ModelCheckpoint keeps the first of equally good epochs; here the later one wins a tie (it was trained
    longer). It also writes by way of the system's temporary folder, from where a file is copied, not renamed, if that
    lies on another disk: a crash would leave half a file.

    Args:
        last: file of the last epoch, to resume from.
        best: file of the best validation; None where nothing is validated.
        every_n_epochs: how often `last` is written; it is after the last epoch in any case.
        seconds: how long earlier stages were trained.

    Attributes:
        begin: is called before each checkpoint is written.
        best_value: the best value so far; -inf as long as there is none.
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
        """How long the run has been trained, before it was resumed too."""
        return self.earlier_seconds + time.perf_counter() - self.started

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must know."""
        return {"best": self.best_value, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from it."""
        self.best_value, self.earlier_seconds = state_dict["best"], state_dict["seconds"]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights if no earlier epoch was better; a module that has no epochs is kept whole too."""
        value = float(trainer.callback_metrics.get("val/auroc", self.best_value))  # without one the latest is the best
        if self.best is not None and value >= self.best_value:
            self.best_value = value
            self._save(trainer, self.best, weights_only=True)
        if trainer.state.fn == "validate":
            self._save(trainer, self.last)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the full state, after the epoch's row of the curves: whatever ends the process in between, none is lost.

        Lightning writes the row after all callbacks; of an epoch that is trained again it is replaced.
        """
        epoch = trainer.current_epoch + 1
        if epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs:
            logged = {name: float(value) for name, value in trainer.logged_metrics.items() if name[:4] != "val/"}
            for logger in trainer.loggers:
                if hasattr(logger, "write_row"):
                    logger.write_row(trainer.current_epoch, logged)
            self._save(trainer, self.last)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a training that ended by itself before its first epoch did: it has calibrated nothing.

        Raises:
            UserError: it has.
        """
        if not trainer.current_epoch:
            raise UserError("the training ended before its first epoch was done: leave out trainer.max_time")

    def _save(self, trainer: pl.Trainer, path: Path, weights_only: bool = False) -> None:
        self.begin()
        save(trainer, path, weights_only)


def save(trainer: pl.Trainer, path: Path, weights_only: bool = False) -> None:
    """Write beside the old file, then rename; every process takes part, one of them writes."""
    partial = path.with_suffix(".part")
    try:
        trainer.save_checkpoint(partial, weights_only)
        if trainer.is_global_zero:
            put_in_place(partial, path)
    except OSError:
        if trainer.is_global_zero:
            partial.unlink(missing_ok=True)  # what fills the disk without being of use
        raise


def trained_epochs(path: Path) -> int:
    """Read how many epochs a checkpoint's training has had.

    Raises:
        UserError: it holds weights only.
    """
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    try:
        return int(state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path} holds no state of a training to continue from: train anew") from error
