"""The two checkpoints of a run: `best.ckpt` by `val/auroc` and `last.ckpt`, written whole or not at all."""

import os
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint


class BestAndLast(Checkpoint):
    """Keeps the weights of the best validation and the full state of the last epoch.

    Lightning's ModelCheckpoint writes in place, so that a crash leaves half a file, and keeps the first of equally
    good epochs; here a file is renamed into place, and the later epoch wins a tie (its training went on longer).

    Args:
        folder: where `best.ckpt` (weights) and `last.ckpt` (to resume from) go.
        monitor: what is best, larger is better.
        every_n_epochs: how often `last.ckpt` is written.

    Attributes:
        best: the best value so far.
        earlier_seconds: how long the run had been trained when its checkpoint was written, if it is resumed.
    """

    def __init__(self, folder: str, monitor: str = "val/auroc", every_n_epochs: int = 1) -> None:
        self.folder, self.monitor, self.every_n_epochs = Path(folder), monitor, every_n_epochs
        self.best = float("-inf")
        self.earlier_seconds, self.started = 0.0, time.perf_counter()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Start the clock of a training."""
        if stage == "fit":
            self.started = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {"best": self.best, "seconds": self.earlier_seconds + time.perf_counter() - self.started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up again."""
        self.best = state_dict["best"]
        self.earlier_seconds = state_dict.get("seconds", 0.0)  # unknown to checkpoints of earlier versions

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights if no earlier epoch was better."""
        value = float(trainer.callback_metrics.get(self.monitor, self.best))  # without one the latest is the best
        if trainer.state.fn == "fit" and value >= self.best:
            self.best = value
            self.save(trainer, "best.ckpt", weights_only=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the full state."""
        epoch = trainer.current_epoch + 1
        if epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs:
            self.save(trainer, "last.ckpt", weights_only=False)

    def save(self, trainer: pl.Trainer, name: str, weights_only: bool) -> None:
        """Write beside the old file, then rename; every process takes part, one of them writes."""
        partial = self.folder / f"{name}.part"
        trainer.save_checkpoint(partial, weights_only)
        if trainer.is_global_zero:
            os.replace(partial, self.folder / name)
