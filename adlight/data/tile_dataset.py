"""Images as tiles at their own resolution: the items are tiles, those of an image one after the other."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from rich.progress import track
from torch.utils.data import Dataset

from adlight.data.dataset import PROGRESS_FROM, CachedImageDataset, Decoded
from adlight.data.tiling import Tiling
from adlight.types import Batch, Record, UserError

Tiles = tuple[np.ndarray, np.ndarray, np.ndarray]  # (n, C, h, w) uint8, masks and what counts (n, h, w) bool
Corner = tuple[int, int]
ReadImage = tuple[Corner, list[Corner], Tiles]  # height and width, corners of the tiles, tiles


class TileDataset(Dataset):
    """The tiles of a split's images, fetched as whole batches; `Batch["index"]` counts tiles, `Batch["tile"]` places.

    Tiles in which nothing counts are left out. Every image is decoded once at the beginning, for its size.

    Args:
        images: reads the records at their own size; it caches nothing.
        categories: names in the order of `Batch["category"]`.
        tiling: cuts them.
        cache_bytes: tiles are kept in memory if they need no more.
        skip: leave out unreadable images, and keep their messages in `skipped`.

    Raises:
        UserError: an unreadable image, or one whose mask has another size.
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
        self.last: tuple[int, Tiles] | None = None  # image and tiles, where they are not kept
        places, size = list[list[int]](), 0
        for record, one in self._read_all():
            if isinstance(one, UserError):
                if not skip:
                    raise one
                self.skipped.append(str(one))
                continue
            shape, corners, tiles = one
            places += [[len(self.records), *corner, *shape, len(corners)] for corner in corners]
            self.records.append(record)
            size += sum(part.nbytes for part in tiles)
            self.cache = self.cache and size <= cache_bytes
            self.kept.append(tiles)
            if not self.cache:
                self.kept.clear()
        self.places = torch.tensor(places, dtype=torch.long).view(-1, 6)  # (N, 6), `Batch["tile"]`
        self.labels = torch.tensor([record.label for record in self.records])
        self.category = torch.tensor([list(categories).index(record.category) for record in self.records])
        owner = self.places[:, 0]
        counts = torch.bincount(owner, minlength=len(self.records))
        self.number = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]  # (N,), within its image

    def _read_all(self) -> Iterator[tuple[Record, "ReadImage | UserError"]]:
        count = len(self.images.records)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = pool.map(self._read, self.images.records)
            shown = track(found, "reading images", count, transient=True, disable=count < PROGRESS_FROM)
            yield from zip(self.images.records, shown, strict=True)

    def _read(self, record: Record) -> "ReadImage | UserError":
        try:
            decoded = self.images.read(record)
        except UserError as error:
            return error
        corners, tiles = self._cut(decoded)
        return decoded.size, corners, tiles

    def _cut(self, decoded: Decoded) -> tuple[list[Corner], Tiles]:
        shape, corners, parts = decoded.size, [], []
        mask = np.zeros(shape, bool) if decoded.mask is None else decoded.mask
        content = np.ones(shape, bool) if decoded.content is None else decoded.content
        for place in self.tiling.places(*shape):
            inside = self.tiling.cut(content, place)
            if inside.any():
                corners.append(place)
                parts.append((self.tiling.cut(decoded.image, place), self.tiling.cut(mask, place), inside))
        image, masks, contents = (np.stack(one) for one in zip(*parts, strict=True))
        return corners, (image, masks, contents)

    def __len__(self) -> int:
        return len(self.places)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Fetch a batch of tiles at once, as uint8 images."""
        index = torch.as_tensor(indices)
        place = self.places[index]  # (B, 6)
        rows = [
            (self._tiles(image), k) for image, k in zip(place[:, 0].tolist(), self.number[index].tolist(), strict=True)
        ]
        image, mask, content = (torch.from_numpy(np.stack([tiles[part][k] for tiles, k in rows])) for part in range(3))
        label, category = self.labels[place[:, 0]], self.category[place[:, 0]]
        batch = Batch(image=image, label=label, mask=mask, index=index, category=category, tile=place)
        return Batch(**batch, content=content) if self.images.roi else batch

    def _tiles(self, image: int) -> Tiles:
        if self.cache:
            return self.kept[image]
        if self.last is None or self.last[0] != image:
            self.last = image, self._cut(self.images.read(self.records[image]))[1]
        return self.last[1]
