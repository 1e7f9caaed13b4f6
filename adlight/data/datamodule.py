"""One data module for every data set: normal images to train on, held-out ones to validate, a labelled test."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Generator
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from adlight.data.augmentation import Augmentation
from adlight.data.dataset import CachedImageDataset, PseudoAnomalyDataset
from adlight.data.sampler import ExactSampler
from adlight.data.source import Source
from adlight.rng import derive_seed
from adlight.types import Batch, Record, UserError


def split_normals(records: list[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Part normal records into training and validation, category by category. -> (train, validation).

    Raises:
        UserError: a category with a single image, which cannot be parted.
    """
    train: list[Record] = []
    held_out: list[Record] = []
    for category in sorted({record.category for record in records}):
        mine = [record for record in records if record.category == category]
        count = max(1, round(fraction * len(mine)))
        if count >= len(mine):
            raise UserError(
                f"category {category} has {len(mine)} normal training image(s): too few to hold out "
                f"{count} for validation (dataset.val_fraction={fraction})"
            )
        order = torch.randperm(len(mine), generator=Generator().manual_seed(seed)).tolist()
        held_out += [mine[i] for i in sorted(order[:count])]
        train += [mine[i] for i in sorted(order[count:])]
    return train, held_out


class AnomalyDataModule(pl.LightningDataModule):
    """Loaders over a `Source`. Training and validation are built without a look at the test split.

    Validation is held-out normal training images, plain (label 0) and with pasted defects (label 1).

    Args:
        source: makes the data set's `Source` from `source_settings`.
        image_size: side in pixels to which all images are resized.
        resize: side to resize to instead, of which the centre of `image_size` is kept (a centre crop); None = no crop.
        channels: 3, or 1 for grey.
        batch_size: images a process and training step.
        eval_batch_size: images a process and validation or test step.
        val_fraction: share of each category's normal training images that is held out.
        seed: of the split, the shuffling, the augmentation and the pasted defects.
        augmentation: applied to training batches on their device; None = none.
        cache_gb: splits up to this size (decoded, in GB) are kept in memory; larger ones are decoded at every fetch.
        num_workers: loader processes; used only where images are not cached.
        on_bad_image: `error` or `skip`.
        source_settings: the arguments of `source`, such as `root` and `category`.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        source: Callable[..., Source],
        *,
        image_size: int,
        resize: int | None = None,
        channels: int = 3,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        val_fraction: float = 0.1,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        cache_gb: float = 8.0,
        num_workers: int = 2,
        on_bad_image: str = "error",
        **source_settings: Any,
    ) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ValueError(f"dataset.channels {channels} must be 1 or 3")
        if not 0 < val_fraction < 1:
            raise ValueError(f"dataset.val_fraction {val_fraction} must lie between 0 and 1")
        if min(image_size, batch_size, eval_batch_size) < 1:
            raise ValueError(
                f"dataset.image_size {image_size}, batch_size {batch_size} and eval_batch_size {eval_batch_size} "
                "must be positive"
            )
        if resize is not None and resize < image_size:
            raise ValueError(
                f"dataset.resize {resize} is smaller than dataset.image_size {image_size}, which is cut out of it: "
                "raise it, or dataset.resize=null"
            )
        if on_bad_image not in ("error", "skip"):
            raise ValueError(f"dataset.on_bad_image {on_bad_image!r} is unknown: error or skip")
        self.source = source(**source_settings)
        self.image_size, self.resize, self.channels = image_size, resize, channels
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.val_fraction, self.seed, self.augmentation = val_fraction, seed, augmentation
        self.cache_gb, self.num_workers, self.on_bad_image = cache_gb, num_workers, on_bad_image
        self.first_epoch = 0  # epochs of earlier stages of a training: the order of the images goes on after theirs
        self.categories: list[str] = []
        self.normals: list[Record] = []
        self.stores: dict[str, CachedImageDataset] = {}

    def prepare_data(self) -> None:
        """Download or generate what the source needs; Lightning calls this on one process of a machine."""
        self.source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """List, split and decode what the stage needs; what is there already stays."""
        if stage in ("fit", "validate", None) and "val" not in self.stores:
            self.normals, held_out = split_normals(self.source.train(), self.val_fraction, self.seed)
            self.categories = sorted({record.category for record in self.normals})
            self.stores["val"] = self.store("validation", held_out)
        if stage in ("fit", None) and "train" not in self.stores:
            self.stores["train"] = self.store("training", self.normals)
        if stage in ("test", None) and "test" not in self.stores:
            records = self.source.test()
            if not records:
                raise UserError(f"nothing to test: {self.source.protocol}")
            # training categories keep their numbers; those that only the test has come after them
            seen = sorted({record.category for record in records} - set(self.categories))
            self.categories += seen
            self.stores["test"] = self.store("test", records)

    def store(self, split: str, records: list[Record]) -> CachedImageDataset:
        """Make the store of a split's records, cached if they fit `cache_gb`."""
        pixels = len(records) * self.image_size**2
        store = CachedImageDataset(
            self.source,
            records,
            self.categories,
            image_size=self.image_size,
            resize=self.resize,
            channels=self.channels,
            cache=pixels * (self.channels + 1) <= self.cache_gb * 1e9,
            on_bad_image=self.on_bad_image,
        )
        if gone := {record.category for record in records} - {record.category for record in store.records}:
            raise UserError(f"no readable {split} image of {min(gone)} is left; the first: {store.skipped[0]}")
        return store

    def records(self, split: str) -> list[Record]:
        """Records of `train`, `val` or `test` in the order of `Batch["index"]`, after `setup`."""
        return self.stores[split].records

    def skipped(self) -> list[str]:
        """Messages of the images that could not be read and were left out."""
        return [message for store in self.stores.values() for message in store.skipped]

    def train_dataloader(self) -> DataLoader:
        """Shuffled by seed and epoch; Lightning tells the sampler the epoch, so a resumed run sees the same order."""
        store = self.stores["train"]
        rank, world = self.place()
        seed = self.seed + self.first_epoch  # to which the sampler adds the epoch
        sampler: Sampler[int] = DistributedSampler(store, num_replicas=world, rank=rank, shuffle=True, seed=seed)
        return self.loader(store, store.cache, self.batch_size, sampler)

    def val_dataloader(self) -> DataLoader:
        """Held-out normals, plain and with pasted defects."""
        store = self.stores["val"]
        return self.exact_loader(PseudoAnomalyDataset(store, self.seed), store.cache, 2 * len(store))

    def test_dataloader(self) -> DataLoader:
        """The labelled test split."""
        store = self.stores["test"]
        return self.exact_loader(store, store.cache, len(store))

    def exact_loader(self, dataset: Dataset, cached: bool, length: int) -> DataLoader:
        """Loader in order, each image once over all processes."""
        rank, world = self.place()
        if length < world:
            raise UserError(f"{length} images cannot be shared by {world} processes: lower trainer.devices")
        return self.loader(dataset, cached, self.eval_batch_size, ExactSampler(length, rank, world))

    def loader(self, dataset: Dataset, cached: bool, batch_size: int, sampler: Sampler[int]) -> DataLoader:
        """Loader of whole batches; from memory one thread is enough, worker processes would only copy."""
        workers = 0 if cached else self.num_workers
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=as_it_is,
        )

    def place(self) -> tuple[int, int]:
        """This process's rank, and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn uint8 into [0, 1] on the device; augment while training, by a seed of the batch and process."""
        batch["image"] = batch["image"].float().div_(255)
        if self.trainer and self.trainer.training and self.augmentation is not None:
            seed = derive_seed(
                "augmentation", self.seed, self.trainer.fit_loop.total_batch_idx + 1, self.trainer.global_rank
            )
            batch["image"] = self.augmentation(batch["image"], seed)
        return batch


def as_it_is(batch: Any) -> Any:
    """Collate nothing: the stores fetch whole batches."""
    return batch
