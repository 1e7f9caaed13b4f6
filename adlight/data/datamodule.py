"""One data module for every data set: normal images to train on, held-out ones to validate, a labelled test."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytorch_lightning as pl
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from adlight.data.augmentation import Augmentation, augment
from adlight.data.frames import Frame, Size
from adlight.data.loading import Loading, Split
from adlight.data.preflight import check_before_training
from adlight.data.pseudo_dataset import PseudoAnomalyDataset
from adlight.data.roi import RegionOfInterest
from adlight.data.sampler import ExactSampler, TileBatches
from adlight.data.source import Source
from adlight.data.splits import split_normals
from adlight.data.tile_dataset import TileDataset
from adlight.data.tiling import QUARTER, Overlap, Tile, make_tiling
from adlight.rng import derive_seed
from adlight.settings import ArgumentsOf, Built, Channels, PathName, Seed, checked
from adlight.types import Batch, Record, UserError


class AnomalyDataModule(pl.LightningDataModule):
    """Loaders over a `Source`. Training and validation are built without a look at the test split.

    Validation is held-out normal training images, plain (label 0) and with pseudo-anomalies (label 1).

    Args:
        source: makes the data set's `Source` from `source_settings`.
        image_size: side in pixels, or height and width, to which all images are resized.
        resize: side, or height and width, to resize to instead, of which the centre of `image_size` is kept (a centre
            crop); None = no crop.
        keep_shape: scale images to fit into `image_size` instead, and pad them; padding is neither trained on nor
            scored nor counted.
        channels: 3, or 1 for grey.
        batch_size: images per process and training step.
        eval_batch_size: images per process and validation or test step.
        val_fraction: share of each category's normal training images that is held out.
        val_defects: copies of each held-out image, with a pseudo-anomaly each.
        seed: of the split, the shuffling, the augmentation and the pseudo-anomalies.
        augmentation: applied to training batches on their device; None = none.
        cache: decoded images: in `memory` of every process, on `disk` in a file that all map, or by size (`auto`).
        cache_gb: GB of a split that all processes together keep in memory with `auto`.
        cache_dir: folder of the files; None: splits that do not fit are decoded at every fetch.
        num_workers: loader processes; used only where images are not cached.
        on_bad_image: `error`, or `skip` to leave out unreadable images.
        roi: a mask of what counts in every image, or a folder of masks, see `RegionOfInterest`; None: everything does.
        tile: side in pixels of the originals of tiles that are trained on, scored and joined, each in `image_size`.
        overlap: share of a tile that its neighbours cover too, at least.
        source_settings: the arguments of `source`, such as `root` and `category`.

    Raises:
        ValueError: a setting out of range.
    """

    @checked
    def __init__(
        self,
        source: Callable[..., Source],
        *,
        image_size: Size,
        resize: Size | None = None,
        keep_shape: bool = False,
        channels: Channels = 3,
        batch_size: PositiveInt = 16,
        eval_batch_size: PositiveInt = 32,
        val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1,
        val_defects: Annotated[int, Field(ge=1, le=1000)] = 1,
        seed: Seed = 0,
        augmentation: Built[Augmentation] | None = None,
        cache: Literal["auto", "memory", "disk"] = "auto",
        cache_gb: NonNegativeFloat = 8.0,
        cache_dir: PathName | None = None,
        num_workers: Annotated[int, Field(ge=0, le=1024)] = 2,
        on_bad_image: Literal["error", "skip"] = "error",
        roi: PathName | None = None,
        tile: Tile | None = None,
        overlap: Overlap = QUARTER,
        **source_settings: Annotated[Any, ArgumentsOf("source")],
    ) -> None:
        super().__init__()
        if keep_shape and (roi or tile):
            raise ValueError("roi and tile need keep_shape=false")
        self.frame, self.roi = Frame(image_size, resize, keep_shape), RegionOfInterest(roi) if roi else None
        self.tiling = make_tiling(tile, overlap, image_size)
        self.source, self.channels = source(**source_settings), channels
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.val_fraction, self.val_defects = val_fraction, val_defects
        self.seed, self.augmentation, self.on_bad_image = seed, augmentation, on_bad_image
        self.cache, self.cache_gb, self.cache_dir, self.num_workers = cache, cache_gb, cache_dir, num_workers
        self.first_epoch = 0  # epochs of earlier stages of a training, after which the order of the images continues
        self.categories: list[str] = []
        self.datasets: dict[str, Split] = {}  # by split
        self.train_records: list[Record] = []
        self.notes: list[str] = []  # what `check` found that a user should know

    def prepare_data(self) -> None:
        """Download or generate what the source needs; Lightning calls this on one process of a machine."""
        self.source.prepare()

    def check(self) -> None:
        """List and check all splits, before anything is computed; the test split is looked at, but steers nothing.

        Raises:
            UserError: nothing to test, or a file that is missing or of no use.
        """
        self.notes = check_before_training(self.source, self.frame, self.on_bad_image == "skip", self.roi, self.tiling)

    def setup(self, stage: str | None = None) -> None:
        """List, split and decode what the stage needs; what is there already stays."""
        if stage in ("fit", "validate", None) and "val" not in self.datasets:
            self.train_records, held_out = split_normals(self.source.train(), self.val_fraction, self.seed)
            self.categories = sorted({record.category for record in self.train_records})
            self.datasets["val"] = self._load(held_out)
        if stage in ("fit", None) and "train" not in self.datasets:
            self.datasets["train"] = self._load(self.train_records)
        if stage in ("test", None) and "test" not in self.datasets:
            records = self.source.test()
            if not records:
                raise UserError(f"nothing to test: {self.source.protocol}")
            # training categories keep their numbers; those that only the test has come after them
            self.categories += sorted({record.category for record in records} - set(self.categories))
            self.datasets["test"] = self._load(records)

    def records(self, split: str) -> list[Record]:
        """Return a split's records in the order of `Batch["index"]`, after `setup`."""
        return self.datasets[split].records

    def protocol(self, num_tested: int) -> str:
        """Say what counts as normal and what was tested, and how much of the whole test split that is."""
        whole, used = len(self.source.whole().test()), len(self.source.test())
        limits = getattr(self.source, "sampling", None)
        cut = [name for name in ("balanced_test", "test_limit") if getattr(limits, name, None)] if used < whole else []
        cut += ["limit_test_batches"] if num_tested < len(self.records("test")) else []
        share = f"; {num_tested:,} of {whole:,} test images were used ({', '.join(cut)})" if cut else ""
        return self.source.protocol + share

    def describe(self, num_tested: int) -> list[str]:
        """Say what was tested and what a user should know of the images, in lines."""
        lost = [f"skipped {len(skipped)} unreadable image(s): {skipped[0]}" for skipped in [self.skipped()] if skipped]
        return [self.protocol(num_tested), *self.notes, *lost]

    def skipped(self) -> list[str]:
        """Return the messages of the images that could not be read and were left out."""
        return [message for dataset in self.datasets.values() for message in dataset.skipped]

    def train_dataloader(self) -> DataLoader:
        """Shuffle by seed and epoch; Lightning tells the sampler the epoch, so a resumed run sees the same order."""
        dataset = self.datasets["train"]
        rank, world_size = self._process()
        seed = self.seed + self.first_epoch  # the sampler adds the epoch
        sampler: DistributedSampler = DistributedSampler(dataset, world_size, rank, shuffle=True, seed=seed)
        return self._loader(dataset, dataset.cache, batch_size=self.batch_size, sampler=sampler)

    def val_dataloader(self) -> DataLoader:
        """Load held-out normals, plain and with pseudo-anomalies."""
        copies = PseudoAnomalyDataset(self.datasets["val"], self.seed, self.val_defects)
        return self._exact_loader(copies, self.datasets["val"], 1 + self.val_defects)

    def test_dataloader(self) -> DataLoader:
        """Load the labelled test split."""
        return self._exact_loader(self.datasets["test"], self.datasets["test"])

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn uint8 into [0, 1] on the device; augment while training, by a seed of the batch and process."""
        batch["image"] = batch["image"].float().div_(255)
        if self.trainer and self.trainer.training and self.augmentation is not None:
            batch_number = self.trainer.fit_loop.total_batch_idx + 1
            seed = derive_seed("augmentation", self.seed, batch_number, self.trainer.global_rank)
            augment(batch, self.augmentation, seed)
        return batch

    def _load(self, records: list[Record]) -> Split:
        limits = self.cache, self.cache_gb, self.cache_dir, self.on_bad_image == "skip", self._process()[1]
        return Loading(self.source, self.frame, self.channels, self.tiling, self.roi, *limits)(records, self.categories)

    def _exact_loader(self, dataset: Dataset, split: Split, copies: int = 1) -> DataLoader:
        rank, world_size = self._process()
        if (count := len(split.records) * (1 if isinstance(split, TileDataset) else copies)) < world_size:
            raise UserError(f"{count} images cannot be shared by {world_size} processes: use fewer devices")
        if isinstance(split, TileDataset):  # all of an image are on one process
            owners = split.places[:, 0].repeat_interleave(copies)
            batches = TileBatches(owners, self.eval_batch_size, rank, world_size)
            return self._loader(dataset, split.cache, batch_sampler=batches)
        sampler = ExactSampler(count, rank, world_size)
        return self._loader(dataset, split.cache, batch_size=self.eval_batch_size, sampler=sampler)

    def _loader(self, dataset: Dataset, cached: bool, **order: Any) -> DataLoader:
        workers = 0 if cached else self.num_workers  # from memory one thread is enough, workers would only copy
        return DataLoader(dataset, collate_fn=_keep_batch, num_workers=workers, persistent_workers=workers > 0, **order)

    def _process(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def _keep_batch(batch: Any) -> Any:
    return batch  # the data sets fetch whole batches
