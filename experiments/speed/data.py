"""Row `data`: images per second from the cache, and while it is filled; what the cache costs."""

import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from timing import Row, memory, row

from adlight.data.augmentation import Augmentation
from adlight.data.datamodule import AnomalyDataModule
from adlight.data.mvtec import MVTecAD
from adlight.data.source import Source
from adlight.types import Record

SIZE, COUNT, BIG = 256, 4000, 64  # pixels per side, images in the cache, originals of 1024 x 1024


class Noise(Source):
    """Images that need no file: one picture of noise, moved."""

    def __init__(self) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)

    def train(self) -> list[Record]:
        return [Record(str(i), "noise") for i in range(COUNT)]

    def read(self, record: Record) -> Image.Image:
        return Image.fromarray(np.roll(self.pixels, int(record.path), axis=1))


def measure() -> list[Row]:
    torch.set_num_threads(1)
    return [*cached(), *first_epoch()]


def cached() -> list[Row]:
    data = AnomalyDataModule(Noise, image_size=SIZE, batch_size=16, augmentation=Augmentation())
    before = memory()
    data.setup("fit")
    cost = memory() - before
    counts = {name: len(store) for name, store in data.datasets.items()}
    pixels = sum(counts.values()) * 3 * SIZE * SIZE
    stored = sum(store.decoded.nbytes for store in data.datasets.values())
    rows = [
        row(
            "data", f"cache of {sum(counts.values()):,} images: bytes / (images x C x H x W)", stored / pixels, "ratio"
        ),
        row("data", "the same, resident memory", cost / pixels, "ratio", "1 + small"),
        row("data", "the same, resident memory beyond the pixels", (cost - pixels) / 1e6, "MB"),
    ]
    loader = data.train_dataloader()
    data.trainer = SimpleNamespace(training=True, global_rank=0, fit_loop=SimpleNamespace(total_batch_idx=0))
    augmentation = data.augmentation

    def epoch(convert: bool, augment: bool, batches: int) -> float:
        data.augmentation = augmentation if augment else None
        start = time.perf_counter()
        images = 0
        for number, batch in enumerate(loader):
            if number == batches:
                break
            if convert:
                batch = data.on_after_batch_transfer(batch, 0)
            images += len(batch["image"])
        return images / (time.perf_counter() - start)

    works = {
        "the loader (uint8 batches of 16)": ((False, False, len(loader)), ">= 5,000"),
        "the loader and conversion to float": ((True, False, len(loader)), ""),
        "the loader, conversion and augmentation": ((True, True, 20), ""),
    }
    rates: dict[str, list[float]] = {what: [] for what in works}
    for turn in range(6):
        for what, (arguments, _) in works.items():
            rate = epoch(*arguments)
            if turn:  # the first epoch does not count
                rates[what].append(rate)
    for what, (_, aim) in works.items():
        rows.append(row("data", f"second epoch, {SIZE} x {SIZE}, one thread: {what}", rates[what], "images/s", aim))
    return rows


def first_epoch() -> list[Row]:
    """Decode and resize PNG originals of 1024 x 1024 pixels."""
    rng, rates, cores = np.random.default_rng(0), {"all cores": [], "one thread": []}, []
    with TemporaryDirectory() as folder:
        root = Path(folder) / "metal" / "train" / "good"
        root.mkdir(parents=True)
        for i in range(BIG):
            coarse = Image.fromarray(rng.integers(60, 200, (32, 32, 3), dtype=np.uint8)).resize((1024, 1024))
            noisy = np.asarray(coarse).astype(np.int16) + rng.normal(0, 4, (1024, 1024, 1)).astype(np.int16)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(root / f"{i:03}.png")
        make = partial(AnomalyDataModule, partial(MVTecAD, root=folder), image_size=SIZE)
        for turn in range(4):
            for name in rates:
                data = make()
                start, busy = time.perf_counter(), time.process_time()
                if name == "one thread":
                    with patch("os.cpu_count", return_value=1):
                        data.setup("fit")
                else:
                    data.setup("fit")
                wall = time.perf_counter() - start
                if turn:  # the first turn fills the disk's cache
                    rates[name].append(BIG / wall)
                    if name == "all cores":
                        cores.append((time.process_time() - busy) / wall)
    faster = [a / b for a, b in zip(rates["all cores"], rates["one thread"], strict=True)]
    what = f"first epoch from 1024 x 1024 PNG to {SIZE} x {SIZE}"
    return [
        *(row("data", f"{what}: {name}", values, "images/s") for name, values in rates.items()),
        row("data", f"{what}: all cores / one thread", faster, "ratio", "cores"),
        row("data", f"{what}: cores kept busy", cores, "cores", "all"),
    ]
