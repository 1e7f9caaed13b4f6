"""Progress bars, and plain lines where there is no terminal; both count epochs from 1."""

import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, ProgressBar, RichProgressBar

from adlight.runs.log import log_line


class EpochLines:
    """Lines about a training's progress: after every tenth of its epochs, and at least every ten minutes."""

    def __init__(self) -> None:
        self.written = 0.0

    def line(self, trainer: pl.Trainer) -> str | None:
        """Format the epoch and the metrics of the progress bar; return None if no line is due."""
        epoch, last = trainer.current_epoch + 1, trainer.max_epochs or 0
        metrics = trainer.progress_bar_metrics  # in every process: computing them is a collective operation
        if not (epoch == last or epoch % max(1, last // 10) == 0 or time.monotonic() - self.written > 600):
            return None
        self.written = time.monotonic()
        return " ".join([f"epoch {epoch}/{last}", *(f"{name} {float(value):.4f}" for name, value in metrics.items())])


class QuietProgress(ProgressBar):
    """Print plain lines, for output to anything but a terminal."""

    silent = False

    def __init__(self) -> None:
        super().__init__()
        self.lines = EpochLines()

    def disable(self) -> None:
        """Stop printing; Lightning calls this on all processes but the first."""
        self.silent = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the epoch's line."""
        line = self.lines.line(trainer)
        if line is not None and not self.silent:
            print(line, flush=True)


class LoggedProgress(RichProgressBar):
    """Draw Rich's progress bar, and write plain lines to the log."""

    def __init__(self) -> None:
        super().__init__(leave=False)
        self.lines = EpochLines()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch's line."""
        super().on_train_epoch_end(trainer, pl_module)
        if (line := self.lines.line(trainer)) is not None:
            log_line(line)

    def _get_train_description(self, current_epoch: int) -> str:
        last: Any = self.trainer.max_epochs
        text = f"epoch {current_epoch + 1}" + (f"/{last}" if last else "")
        return text.ljust(len(self.validation_description))  # keeps the bars aligned


def progress_bar() -> Callback:
    """Make Rich's progress bar for a terminal, plain lines otherwise."""
    return LoggedProgress() if sys.stdout.isatty() else QuietProgress()
