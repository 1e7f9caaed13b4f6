"""From records to a split in memory, in a shared file, or one that is read as it is used."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from adlight.data.dataset import CachedImageDataset
from adlight.data.decoded import name_file
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
    cache: Literal["auto", "memory", "disk"]
    cache_gb: float
    cache_dir: str | Path | None
    skip: bool  # leave out unreadable images
    processes: int

    def __call__(self, records: Sequence[Record], categories: Sequence[str]) -> Split:
        """Read a split.

        Raises:
            UserError: an unreadable image, or no readable one of a category.
        """
        num_bytes = len(records) * math.prod(self.frame.size) * (self.channels + 1 + bool(self.roi))
        fits = self.cache != "disk" and num_bytes * self.processes <= self.cache_gb * 1e9
        in_memory = not self.tiling and (fits or self.cache == "memory")
        file = None if in_memory else self._name_file(records)
        images = CachedImageDataset(
            *(self.source, records, categories),
            frame=WholeFrame() if self.tiling else self.frame,
            channels=self.channels,
            cache=in_memory or file is not None,
            file=file,
            on_bad_image="skip" if self.skip and not self.tiling else "error",
            roi=self.roi,
        )
        split: Split = images
        if self.tiling is not None:
            room = math.inf if self.cache == "memory" else self.cache_gb * 1e9 / self.processes
            split = TileDataset(images, categories, self.tiling, room, self.skip)
        if lost := {record.category for record in records} - {record.category for record in split.records}:
            raise UserError(f"no readable image of {min(lost)} is left, the first: {split.skipped[0]}")
        return split

    def _name_file(self, records: Sequence[Record]) -> Path | None:
        whole = not self.tiling and self.roi is None  # the file holds neither tiles nor regions of interest
        file = name_file(self.cache_dir, self.source, records, self.frame, self.channels) if whole else None
        if self.cache == "disk" and file is None:
            raise UserError(
                "cache=disk needs cache_dir, images that lie in files of their own, and neither tile nor roi: set "
                "cache=memory"
            )
        return file
