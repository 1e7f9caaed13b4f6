"""Splits: hold out images for validation, read the images of a split, and batch tiles."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor

from adlight.data.dataset import CachedImageDataset
from adlight.data.decoded import name_file
from adlight.data.frames import Frame, WholeFrame
from adlight.data.roi import RegionOfInterest
from adlight.data.source import Source
from adlight.data.tile_dataset import TileDataset
from adlight.data.tiling import Tiling
from adlight.types import Record, UserError

Split = CachedImageDataset | TileDataset


def split_normals(records: list[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Split normal records into training and validation, for each category. -> (train, validation).

    Raises:
        UserError: a category has too few images.
    """
    train: list[Record] = []
    held_out: list[Record] = []
    for category in sorted({record.category for record in records}):
        members = [record for record in records if record.category == category]
        count = max(1, round(fraction * len(members)))
        if count >= len(members):
            raise UserError(
                f"category {category} has {len(members)} normal training image(s): too few to hold out {count} for "
                f"validation (val_fraction={fraction})"
            )
        order = torch.randperm(len(members), generator=Generator().manual_seed(seed)).tolist()
        held_out += [members[i] for i in sorted(order[:count])]
        train += [members[i] for i in sorted(order[count:])]
    return train, held_out


class SplitLoader(NamedTuple):
    """How the images of all splits are read; the fields are explained at `AnomalyDataModule`."""

    frame: Frame
    channels: int
    tiling: Tiling | None
    roi: RegionOfInterest | None
    cache: Literal["auto", "memory", "disk"]
    cache_gb: float
    cache_dir: str | Path | None
    skip: bool  # leave out unreadable images

    def load(self, source: Source, records: Sequence[Record], categories: Sequence[str], processes: int = 1) -> Split:
        """Read records into memory or a shared file, or prepare to read them when they are used.

        Raises:
            UserError: an image is unreadable, no readable one of a category is left, or cache=disk is impossible.
        """
        num_bytes = len(records) * math.prod(self.frame.size) * (self.channels + 1 + bool(self.roi))
        fits = self.cache != "disk" and num_bytes * processes <= self.cache_gb * 1e9
        in_memory = not self.tiling and (fits or self.cache == "memory")
        file = None
        if not in_memory and not self.tiling and not self.roi:  # a file holds neither tiles nor regions of interest
            file = name_file(self.cache_dir, source, records, self.frame, self.channels)
        if self.cache == "disk" and file is None:
            raise UserError(
                "cache=disk needs cache_dir, images that lie in files of their own, and neither tile nor roi: set "
                "cache=memory"
            )
        images = CachedImageDataset(
            *(source, records, categories),
            frame=WholeFrame() if self.tiling else self.frame,
            channels=self.channels,
            cache=in_memory or file is not None,
            file=file,
            skip=self.skip and not self.tiling,
            roi=self.roi,
        )
        split: Split = images
        if self.tiling is not None:
            max_bytes = math.inf if self.cache == "memory" else self.cache_gb * 1e9 / processes
            split = TileDataset(images, categories, self.tiling, max_bytes, self.skip)
        if lost := {record.category for record in records} - {record.category for record in split.records}:
            raise UserError(f"no readable image of {min(lost)} is left, the first: {split.skipped[0]}")
        return split


def batch_tiles(images: Tensor, batch_size: int, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    """List batches of tile indices, given the image of each tile (N,); a batch has tiles of one image only.

    Each process gets all tiles of its images.
    """
    batches: list[list[int]] = []
    for image in images.unique().tolist()[rank::world_size]:
        batches += [part.tolist() for part in (images == image).nonzero()[:, 0].split(batch_size)]
    return batches
