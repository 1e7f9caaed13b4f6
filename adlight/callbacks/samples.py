"""Pictures of a generator's samples during training."""

from pathlib import Path

import pytorch_lightning as pl
from pydantic import PositiveInt
from torchvision.utils import make_grid, save_image

from adlight.callbacks.wandb_media import log_picture
from adlight.gan.module import AdversarialModule
from adlight.settings import PathName, checked


class Samples(pl.Callback):
    """Write a grid of samples from fixed latents every few epochs, as `epoch-0005.png` and to W&B and TensorBoard.

    Args:
        folder: folder for the pictures.
        every: number of epochs between two pictures; the last epoch always has a picture.
        count: number of images in a grid.
    """

    @checked
    def __init__(self, folder: PathName, every: PositiveInt = 5, count: PositiveInt = 64) -> None:
        self.folder, self.every, self.count = Path(folder), every, count

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the grid in the first process if it is due."""
        epoch = trainer.current_epoch + 1
        is_due = epoch % self.every == 0 or epoch == trainer.max_epochs
        if not isinstance(pl_module, AdversarialModule) or not trainer.is_global_zero or not is_due:
            return
        grid = make_grid(pl_module.sample(self.count).cpu(), nrow=max(1, round(self.count**0.5)))
        self.folder.mkdir(parents=True, exist_ok=True)
        save_image(grid, self.folder / f"epoch-{epoch:04d}.png")
        log_picture(trainer, "samples", (grid.permute(1, 2, 0) * 255).round().byte().numpy())
