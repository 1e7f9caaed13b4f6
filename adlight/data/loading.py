"""From records to a split in memory, or one that is read as it is used."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from adlight.data.dataset import CachedImageDataset
from adlight.data.frames import Frame, WholeFrame
from adlight.data.roi import RegionOfInterest
from adlight.data.source import Source
from adlight.data.tile_dataset import TileDataset
from adlight.data.tiling import Tiling
from adlight.types import Record, UserError

Split = CachedImageDataset | TileDataset


class Loading(NamedTuple):
    """How the images of every split are read; see `AnomalyDataModule`."""

    source: Source
    frame: Frame
    channels: int
    tiling: Tiling | None
    roi: RegionOfInterest | None
    cache_gb: float
    skip: bool  # leave out unreadable images

    def __call__(self, records: Sequence[Record], categories: Sequence[str]) -> Split:
        """Read a split.

        Raises:
            UserError: an unreadable image, or no readable one of a category.
        """
        num_values = len(records) * math.prod(self.frame.size) * (self.channels + 1 + bool(self.roi))  # bytes
        images = CachedImageDataset(
            *(self.source, records, categories),
            frame=WholeFrame() if self.tiling else self.frame,
            channels=self.channels,
            cache=not self.tiling and num_values <= self.cache_gb * 1e9,
            on_bad_image="skip" if self.skip and not self.tiling else "error",
            roi=self.roi,
        )
        split: Split = images
        if self.tiling is not None:
            split = TileDataset(images, categories, self.tiling, self.cache_gb * 1e9, self.skip)
        if lost := {record.category for record in records} - {record.category for record in split.records}:
            raise UserError(f"no readable image of {min(lost)} is left, the first: {split.skipped[0]}")
        return split
