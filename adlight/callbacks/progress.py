"""The progress bar."""

import sys
import time

from pytorch_lightning.callbacks import Callback, ProgressBar, RichProgressBar


class QuietProgress(ProgressBar):
    """Print plain lines where output is not a terminal: every tenth of the epochs, and every ten minutes."""

    silent = False
    printed = 0.0

    def disable(self) -> None:
        """Print nothing: Lightning calls this on all processes but the first."""
        self.silent = True

    def enable(self) -> None:
        """Print again."""
        self.silent = False

    def on_train_epoch_end(self, trainer, pl_module) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        """Print the epoch and the metrics of the progress bar."""
        epoch, last = trainer.current_epoch + 1, trainer.max_epochs or 0
        shown = trainer.progress_bar_metrics  # on every process, silent ones too: they join in computing it
        due = epoch == last or epoch % max(1, last // 10) == 0 or time.monotonic() - self.printed > 600
        if due and not self.silent:
            self.printed = time.monotonic()
            metrics = (f"{name} {float(value):.4f}" for name, value in shown.items())
            print(f"epoch {epoch}/{last}", *metrics, flush=True)


def progress_bar() -> Callback:
    """Choose Rich's bar on a terminal, a few plain lines elsewhere."""
    return RichProgressBar(leave=False) if sys.stdout.isatty() else QuietProgress()
