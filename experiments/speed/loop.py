"""Row `loop`: Lightning's training loop against a hand-written one that performs the same steps on the same data."""

import copy
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from tempfile import TemporaryDirectory

import pytorch_lightning as pl
import torch
from timing import DEVICE, Row, composed_bare, ratios, row, wait
from torch import Generator, Tensor
from torch.optim import Optimizer

from adlight.data.datamodule import AnomalyDataModule
from adlight.detection.optimization import warmup_cosine
from adlight.features.optimizer import parameter_groups
from adlight.mae.masking import draw_masks
from adlight.mae.module import MAEModule
from adlight.mae.scorer import reconstruct
from adlight.rng import derive_seed
from adlight.train import build

EPOCHS = 10  # the first one is not counted


def autocast(dtype: torch.dtype) -> AbstractContextManager:
    return torch.autocast(DEVICE.type, dtype=dtype, enabled=dtype != torch.float32)


def step(
    module: MAEModule, optimizer: Optimizer, image: Tensor, generator: Generator, dtype: torch.dtype = torch.float32
) -> None:
    """One training step as one writes it by hand; float32, or autocast to another type."""
    mask = draw_masks(module.masks, module.mask_ratio, module.network.num_patches, generator)
    with autocast(dtype):
        shown = reconstruct(module.network, module.tokenizer, image, mask, linear=module.linear)
        loss = module.objective(image, shown)["loss"]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def bare_epochs(module: MAEModule, data: AnomalyDataModule, epochs: int, dtype: torch.dtype) -> Iterator[None]:
    """A whole training without Lightning; yields after each epoch."""
    module.train()
    module.fit_linear(data)
    optimizer, loader = module.optimizer(parameter_groups([module.network])), data.train_dataloader()
    rates = [group["lr"] for group in optimizer.param_groups]
    total = epochs * len(loader)
    warmup = module.warmup_epochs * len(loader)
    done = 0
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            image = data.augmentation(batch["image"].to(DEVICE), derive_seed("augmentation", data.seed, done, 0))
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * warmup_cosine(done, warmup, total)
            masks = Generator().manual_seed(derive_seed("masks", module.seed, done, 0))
            step(module, optimizer, image, masks, dtype)
            done += 1
        yield


class Alternate(pl.Callback):
    """After each epoch of the Trainer, runs the same epoch by hand; notes the seconds of both.

    The Trainer's epoch is counted from the end of the bare one to its own last hook, so all that it does between
    epochs is in it.
    """

    def __init__(self, bare: Iterator[None]) -> None:
        self.bare, self.times = bare, {"trainer": [], "bare": []}
        self.resumed = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        wait()
        if trainer.current_epoch:  # here, and not at the end of the epoch before, all of that is over
            self.times["trainer"].append(time.perf_counter() - self.resumed)
        start = time.perf_counter()
        next(self.bare)
        wait()
        self.resumed = time.perf_counter()
        self.times["bare"].append(self.resumed - start)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        wait()
        self.times["trainer"].append(time.perf_counter() - self.resumed)


def measure() -> list[Row]:
    """Epochs of `model=mae_small dataset=synthetic` by the Trainer and by hand, in turn, in one process."""
    with TemporaryDirectory() as folder:
        config = composed_bare(
            "model=mae_small",
            "dataset=synthetic",
            f"dataset.root={folder}/data",
            "dataset.batch_size=16",
            "dataset.augmentation={_target_:adlight.data.augmentation.Augmentation}",
            f"trainer.max_epochs={EPOCHS}",
        )
        data, module, trainer = build(config)
        trainer.limit_val_batches = 0  # a setting of 0 is refused: thresholds would be missing
        data.prepare_data()
        data.setup("fit")
        twin = copy.deepcopy(module).to(DEVICE)
        other = copy.copy(data)  # the same images in memory, but no Trainer
        dtype = torch.bfloat16 if "bf16" in str(config.trainer.precision) else torch.float32
        alternate = Alternate(bare_epochs(twin, other, EPOCHS, dtype))
        trainer.callbacks.append(alternate)
        trainer.fit(module, data)
    steps = len(other.train_dataloader())
    times = {name: values[1:] for name, values in alternate.times.items()}
    pairs = zip(module.network.parameters(), twin.network.parameters(), strict=True)
    apart = max(float((a.to(DEVICE) - b).abs().max()) for a, b in pairs)
    return [
        row("loop", f"Trainer, a step ({steps} steps an epoch)", [1e3 * t / steps for t in times["trainer"]], "ms"),
        row("loop", "bare loop, a step", [1e3 * t / steps for t in times["bare"]], "ms"),
        row("loop", "Trainer / bare loop", ratios(times["trainer"], times["bare"]), "ratio", "<= 1.05"),
        row("loop", f"largest difference of a weight after {EPOCHS} epochs", apart, "", "0"),
    ]
