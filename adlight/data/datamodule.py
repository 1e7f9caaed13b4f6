"""The data module of all data sets: normal images for training and validation, labelled images for the test."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytorch_lightning as pl
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from adlight.data.augmentation import Augmentation, augment
from adlight.data.bucket import Bucket, is_url
from adlight.data.decoded import to_unit_range
from adlight.data.frames import Frame, Size
from adlight.data.preflight import check_before_training
from adlight.data.pseudo_dataset import PseudoAnomalyDataset
from adlight.data.roi import RegionOfInterest
from adlight.data.source import Source
from adlight.data.splits import Split, SplitLoader, TileDataset, batch_tiles, split_normals
from adlight.data.tiling import QUARTER, Overlap, Tile, make_tiling
from adlight.rng import derive_seed
from adlight.settings import ArgumentsOf, Built, Channels, PathName, Seed, checked
from adlight.types import Batch, Record, UserError


class AnomalyDataModule(pl.LightningDataModule):
    """Data loaders for a `Source`; training and validation do not read the test split.

    The validation split holds held-out normal images, unchanged (label 0) and with pseudo-anomalies (label 1).

    Args:
        source: constructor of the `Source`, which takes `source_settings`.
        image_size: side in pixels, or height and width, to which images are resized.
        resize: size to which images are resized before the central `image_size` is cropped; None for no crop.
        keep_shape: scale images to fit into `image_size` and pad them; padding is ignored in training and scoring.
        channels: 3, or 1 for grey images.
        batch_size, eval_batch_size: images per process and step in training, and in validation or test.
        val_fraction: fraction of each category's normal training images that is held out.
        val_defects: number of copies of each held-out image, with one pseudo-anomaly each.
        val_anomalies: pseudo-anomalies are local `defects`, whole images as if of other `classes`, or `rotations`.
        seed: seed of the split, the shuffling, the augmentation and the pseudo-anomalies.
        augmentation: applied to training batches on their device; None for none.
        cache: where decoded images are kept: in the `memory` of each process, on `disk` in a shared file, or by size
            (`auto`).
        cache_gb: with `auto`, largest size in GB of a split that all processes together keep in memory.
        cache_dir: folder of the files; None decodes splits that do not fit into memory whenever they are used.
        num_workers: number of loader processes, used only for images that are not cached.
        on_bad_image: `error`, or `skip` to leave out unreadable images.
        roi: mask of the pixels that count in all images, or a folder of masks, see `RegionOfInterest`; None for all.
        tile: side of tiles in pixels of the original images; each tile is resized to `image_size`, and maps are joined.
        overlap: smallest fraction of a tile that its neighbour also covers.
        source_settings: arguments of `source`, such as `root` and `category`; a URL as `root` is copied, see `Bucket`.
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
        val_anomalies: Literal["defects", "classes", "rotations"] = "defects",
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
        self.bucket = Bucket(source_settings["root"], cache_dir) if is_url(source_settings.get("root")) else None
        if self.bucket is not None:
            source_settings["root"] = self.bucket.folder
        self.source, self.channels = source(**source_settings), channels
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.val_fraction, self.val_defects, self.val_anomalies = val_fraction, val_defects, val_anomalies
        self.seed, self.augmentation, self.num_workers = seed, augmentation, num_workers
        skip = on_bad_image == "skip"
        self.loader = SplitLoader(self.frame, channels, self.tiling, self.roi, cache, cache_gb, cache_dir, skip)
        self.first_epoch = 0  # number of epochs of earlier training stages, so that the order of images continues
        self.categories: list[str] = []
        self.datasets: dict[str, Split] = {}  # by split
        self.train_records: list[Record] = []
        self.notes: list[str] = []  # remarks of `check` for the user

    def prepare_data(self) -> None:
        """Copy, download or generate the data set; Lightning calls this in one process per machine."""
        if self.bucket is not None:
            self.bucket.copy()
        self.source.prepare()

    def check(self) -> None:
        """Check the files of all splits before anything is computed; raise a UserError if one is unusable."""
        self.notes = check_before_training(self.source, self.frame, self.loader.skip, self.roi, self.tiling)
        split_normals(self.source.train(), self.val_fraction, self.seed)  # raises if there are too few

    def setup(self, stage: str | None = None) -> None:
        """List, split and decode the images of a stage, once."""
        if stage in ("fit", "validate", None) and "val" not in self.datasets:
            self.train_records, held_out = split_normals(self.source.train(), self.val_fraction, self.seed)
            self.categories = sorted({record.category for record in self.train_records})
            self.datasets["val"] = self._load(held_out)
        if stage in ("fit", None) and "train" not in self.datasets:
            self.datasets["train"] = self._load(self.train_records)
        if stage in ("test", None) and "test" not in self.datasets:
            records = self.source.test()
            if not records:
                raise UserError(f"nothing to test: {self.source.protocol}: add images")
            # categories without training images come last, so that the others keep their numbers
            self.categories += sorted({record.category for record in records} - set(self.categories))
            self.datasets["test"] = self._load(records)

    def records(self, split: str) -> list[Record]:
        """Return a split's records in the order of `Batch["index"]`, after `setup`."""
        return self.datasets[split].records

    def protocol(self, num_tested: int) -> str:
        """Describe what counts as normal and what was tested, and the fraction of the test split that was used."""
        whole, limits = len(self.source.whole().test()), list[str]()
        if len(self.source.test()) < whole:
            sampling = getattr(self.source, "sampling", None)
            limits += [name for name in ("balanced_test", "test_limit") if getattr(sampling, name, None)]
        if num_tested < len(self.records("test")):
            limits.append("limit_test_batches")
        used = f"; {num_tested:,} of {whole:,} test images were used ({', '.join(limits)})" if limits else ""
        return self.source.protocol + used

    def describe(self, num_tested: int) -> list[str]:
        """Describe what was tested, with remarks about the images, in lines."""
        lines, skipped = [self.protocol(num_tested), *self.notes], self.skipped()
        return [*lines, f"skipped {len(skipped)} unreadable image(s): {skipped[0]}"] if skipped else lines

    def skipped(self) -> list[str]:
        """Return the messages of unreadable images that were left out."""
        return [message for dataset in self.datasets.values() for message in dataset.skipped]

    def train_dataloader(self) -> DataLoader:
        """Load training images, shuffled by seed and epoch, so that a resumed run sees the same order."""
        dataset, (rank, world_size) = self.datasets["train"], self._process()
        seed = self.seed + self.first_epoch  # the sampler adds the epoch that Lightning sets
        sampler: DistributedSampler = DistributedSampler(dataset, world_size, rank, shuffle=True, seed=seed)
        return self._loader(dataset, dataset.cache, batch_size=self.batch_size, sampler=sampler)

    def val_dataloader(self) -> DataLoader:
        """Load held-out normal images, unchanged and with pseudo-anomalies."""
        copies = PseudoAnomalyDataset(self.datasets["val"], self.seed, self.val_defects, self.val_anomalies)
        return self._exact_loader(copies, self.datasets["val"], 1 + self.val_defects)

    def test_dataloader(self) -> DataLoader:
        """Load labelled test images."""
        return self._exact_loader(self.datasets["test"], self.datasets["test"])

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Convert uint8 to [0, 1] on the device; in training, augment with a seed for the batch and process."""
        if self.trainer and self.trainer.training and self.augmentation is not None:
            number, rank = self.trainer.fit_loop.total_batch_idx + 1, self.trainer.global_rank
            augment(batch, self.augmentation, derive_seed("augmentation", self.seed, number, rank))
        else:
            batch["image"] = to_unit_range(batch["image"])
        return batch

    def _load(self, records: list[Record]) -> Split:
        return self.loader.load(self.source, records, self.categories, self._process()[1])

    def _exact_loader(self, dataset: Dataset, split: Split, copies: int = 1) -> DataLoader:
        rank, world_size = self._process()
        count = len(split.records) * (1 if isinstance(split, TileDataset) else copies)
        if count < world_size:
            raise UserError(f"{count} images are too few for {world_size} processes: use fewer devices")
        if isinstance(split, TileDataset):
            owners = split.places[:, 0].repeat_interleave(copies)
            batches = batch_tiles(owners, self.eval_batch_size, rank, world_size)
            return self._loader(dataset, split.cache, batch_sampler=batches)
        indices = range(rank, count, world_size)  # torch's `DistributedSampler` would repeat some as padding
        return self._loader(dataset, split.cache, batch_size=self.eval_batch_size, sampler=indices)

    def _loader(self, dataset: Dataset, cached: bool, **order: Any) -> DataLoader:
        workers = 0 if cached else self.num_workers  # workers would only copy cached images
        return DataLoader(dataset, collate_fn=_keep_batch, num_workers=workers, persistent_workers=workers > 0, **order)

    def _process(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def _keep_batch(batch: Any) -> Any:
    return batch  # the data sets return whole batches
