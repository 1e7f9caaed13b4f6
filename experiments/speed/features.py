"""Row `features`: training images per second on a frozen backbone's features, from the cache and computed each time."""

import time
from tempfile import TemporaryDirectory

import pytorch_lightning as pl
import torch
from timing import Row, composed_bare, ratios, row, wait

from adlight.train import build

EPOCHS, TURNS, BATCH = 4, 3, 16  # the first epoch of each training is not counted
IDENTITY = "{_target_:adlight.data.augmentation.Augmentation,crop:1,rotation:0,horizontal_flip:0}"
NAMES = {"null": "features from the cache", IDENTITY: "features of each batch by the backbone"}


class Clock(pl.Callback):
    """Notes how many images an epoch trains per second."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        wait()
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        wait()
        images = len(trainer.datamodule.records("train"))
        self.rates.append(images / (time.perf_counter() - self.start))


def measure() -> list[Row]:
    """Train `model=feature_mae` with random weights; an augmentation that changes nothing makes the cache useless."""
    torch.set_num_threads(1)
    rates: dict[str, list[float]] = {augmentation: [] for augmentation in NAMES}
    with TemporaryDirectory() as folder:
        for _ in range(TURNS):
            for augmentation, found in rates.items():
                found += train(folder, augmentation)
    what = "feature_mae, EfficientNet-lite0 at 320 pixels, one thread"
    rows = [row("features", f"{what}: {name}", rates[augmentation], "images/s") for augmentation, name in NAMES.items()]
    return [*rows, row("features", f"{what}: cache / backbone", ratios(*rates.values()), "ratio")]


def train(folder: str, augmentation: str) -> list[float]:
    """Train for some epochs. -> images per second of each but the first."""
    words = f"dataset.root={folder}/data", "dataset.source.train=16", "dataset.source.test=10"
    words += "model.backbone.weights=random", "model.cache=null", f"dataset.batch_size={BATCH}"
    words += "dataset.keep_shape=false", f"dataset.augmentation={augmentation}", f"trainer.max_epochs={EPOCHS}"
    data, module, trainer = build(composed_bare("model=feature_mae", "dataset=synthetic", *words))
    trainer.limit_val_batches, clock = 0, Clock()  # a setting of 0 is refused: thresholds would be missing
    trainer.callbacks.append(clock)
    data.prepare_data()
    trainer.fit(module, data)
    return clock.rates[1:]
