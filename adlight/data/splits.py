"""Splits: hold out images for validation, and read the images of a split, whole or as tiles."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from adlight.data.dataset import CachedImageDataset, read_all
from adlight.data.decoded import DecodedImage, name_file
from adlight.data.frames import Frame, WholeFrame
from adlight.data.roi import RegionOfInterest
from adlight.data.source import Source
from adlight.data.tiling import Tiling
from adlight.types import Batch, Record, UserError

Tiles = tuple[np.ndarray, np.ndarray, np.ndarray]  # (n, C, h, w) uint8; masks and regions of interest (n, h, w) bool
Corner = tuple[int, int]  # row and column
ReadImage = tuple[Corner, list[Corner], Tiles]  # height and width, corners of the tiles, tiles


def split_normals(records: list[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Split each category's normal records into training and validation; raise a UserError if there are too few."""
    train: list[Record] = []
    held_out: list[Record] = []
    for category in sorted({record.category for record in records}):
        members = [record for record in records if record.category == category]
        count = max(1, round(fraction * len(members)))
        if count >= len(members):
            raise UserError(
                f"category {category} has {len(members)} normal training image(s): too few to hold out {count} for "
                f"validation (val_fraction={fraction}): add normal images, or leave the category out"
            )
        order = torch.randperm(len(members), generator=Generator().manual_seed(seed)).tolist()
        held_out += [members[i] for i in sorted(order[:count])]
        train += [members[i] for i in sorted(order[count:])]
    return train, held_out


class TileDataset(Dataset):
    """The tiles of a split's images, fetched as whole batches; `Batch["index"]` numbers tiles.

    Tiles outside the region of interest are left out. Every image is decoded at the beginning to find its size.

    Args:
        images: reads the records at their own size, without a cache.
        categories: names in the order of `Batch["category"]`.
        tiling: cuts the images.
        cache_bytes: largest total size of the tiles for which they are kept in memory.
        skip: whether to leave out unreadable images and keep their messages in `skipped`.

    Raises:
        UserError: an image is unreadable, or its mask has another size.
    """

    def __init__(
        self,
        images: CachedImageDataset,
        categories: Sequence[str],
        tiling: Tiling,
        cache_bytes: float,
        skip: bool = False,
    ) -> None:
        self.images, self.tiling, self.cache = images, tiling, True
        self.skipped, self.records = list[str](), list[Record]()
        self.kept: list[Tiles] = []
        self.last: tuple[int, Tiles] | None = None  # number and tiles of the last image, if they are not cached
        places, numbers, size = list[list[int]](), list[int](), 0
        for record, image in zip(images.records, read_all(self._read, images.records), strict=True):
            if isinstance(image, UserError):
                if not skip:
                    raise image
                self.skipped.append(str(image))
                continue
            shape, corners, tiles = image
            places += [[len(self.records), *corner, *shape, len(corners)] for corner in corners]
            numbers += range(len(corners))
            self.records.append(record)
            size += sum(part.nbytes for part in tiles)
            self.cache = self.cache and size <= cache_bytes
            self.kept.append(tiles)
            if not self.cache:
                self.kept.clear()
        self.places = torch.tensor(places, dtype=torch.long).view(-1, 6)  # (N, 6), see `Batch["tile"]`
        self.labels = torch.tensor([record.label for record in self.records])
        self.category = torch.tensor([list(categories).index(record.category) for record in self.records])
        self.number = torch.tensor(numbers, dtype=torch.long)  # (N,), within its image

    def _read(self, record: Record) -> "ReadImage | UserError":
        try:
            decoded = self.images.read(record)
        except UserError as error:
            return error
        return decoded.size, *self._cut(decoded)

    def _cut(self, decoded: DecodedImage) -> tuple[list[Corner], Tiles]:
        shape, corners, parts = decoded.size, [], []
        mask = np.zeros(shape, bool) if decoded.mask is None else decoded.mask
        content = np.ones(shape, bool) if decoded.content is None else decoded.content
        for place in self.tiling.places(*shape):
            inside = self.tiling.cut(content, place)
            if inside.any():
                corners.append(place)
                parts.append((self.tiling.cut(decoded.image, place), self.tiling.cut(mask, place), inside))
        image, masks, contents = (np.stack(arrays) for arrays in zip(*parts, strict=True))
        return corners, (image, masks, contents)

    def __len__(self) -> int:
        return len(self.places)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Fetch a batch of tiles, as uint8 images."""
        index = torch.as_tensor(indices)
        place = self.places[index]  # (B, 6)
        owner, numbers = place[:, 0], self.number[index].tolist()
        rows = [(self._tiles(image), k) for image, k in zip(owner.tolist(), numbers, strict=True)]
        image, mask, content = (torch.from_numpy(np.stack([tiles[part][k] for tiles, k in rows])) for part in range(3))
        label, category = self.labels[owner], self.category[owner]
        batch = Batch(image=image, label=label, mask=mask, index=index, category=category, tile=place)
        return Batch(**batch, content=content) if self.images.roi else batch

    def _tiles(self, image: int) -> Tiles:
        if self.cache:
            return self.kept[image]
        if self.last is None or self.last[0] != image:
            self.last = image, self._cut(self.images.read(self.records[image]))[1]
        return self.last[1]


Split = CachedImageDataset | TileDataset


class SplitLoader(NamedTuple):
    """Reads the images of splits; for the fields see `AnomalyDataModule`."""

    frame: Frame
    channels: int
    tiling: Tiling | None
    roi: RegionOfInterest | None
    cache: Literal["auto", "memory", "disk"]
    cache_gb: float
    cache_dir: str | Path | None
    skip: bool  # whether to leave out unreadable images

    def load(self, source: Source, records: Sequence[Record], categories: Sequence[str], processes: int = 1) -> Split:
        """Read records into memory or a shared file, or prepare to read them on demand.

        Raises:
            UserError: an image is unreadable, a category has no readable image, or cache=disk is impossible.
        """
        num_bytes = len(records) * math.prod(self.frame.size) * (self.channels + 1 + bool(self.roi))
        fits = self.cache != "disk" and num_bytes * processes <= self.cache_gb * 1e9
        in_memory = not self.tiling and (fits or self.cache == "memory")
        file = None
        if not in_memory and not self.tiling and not self.roi:  # a file holds neither tiles nor regions of interest
            file = name_file(self.cache_dir, source, records, self.frame, self.channels)
        if self.cache == "disk" and file is None:
            raise UserError(
                "cache=disk needs cache_dir and images in separate files, and supports neither tile nor roi: set "
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
            raise UserError(f"category {min(lost)} has no readable image, the first: {split.skipped[0]}")
        return split


def batch_tiles(images: Tensor, batch_size: int, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    """List batches of tile indices, given the image of each tile (N,); a batch contains tiles of a single image.

    Each process gets all tiles of its images.
    """
    batches: list[list[int]] = []
    for image in images.unique().tolist()[rank::world_size]:
        batches += [part.tolist() for part in (images == image).nonzero()[:, 0].split(batch_size)]
    return batches
