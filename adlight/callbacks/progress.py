"""The progress bar."""

import sys

from pytorch_lightning.callbacks import Callback, ProgressBar, RichProgressBar


class QuietProgress(ProgressBar):
    """For output that is no terminal: one line every tenth of the epochs instead of a bar."""

    silent = False

    def disable(self) -> None:
        """Lightning calls this on all processes but the first."""
        self.silent = True

    def enable(self) -> None:
        """Print again."""
        self.silent = False

    def on_train_epoch_end(self, trainer, pl_module) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        """Print epoch, loss and validation AUROC."""
        epoch, last = trainer.current_epoch + 1, trainer.max_epochs or 0
        if not self.silent and (epoch == last or epoch % max(1, last // 10) == 0):
            metrics = {
                name: f"{float(value):.4f}"
                for name, value in trainer.callback_metrics.items()
                if name in ("train/loss", "val/auroc")
            }
            print(f"epoch {epoch}/{last}", *(f"{name} {value}" for name, value in metrics.items()), flush=True)


def progress_bar() -> Callback:
    """Rich's bar on a terminal, a few plain lines elsewhere."""
    return RichProgressBar(leave=False) if sys.stdout.isatty() else QuietProgress()
