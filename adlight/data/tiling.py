"""Tiles: overlapping windows of an image at its own resolution, whose maps are blended into one map.

Letters: T side of a tile in pixels of the image, h x w pixels to which a tile is resized, K channels.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import Field

from adlight.data.arrays import allocate
from adlight.data.frames import MIN_SIDE, Size, parse_size
from adlight.settings import checked
from adlight.types import UserError

Tile = Annotated[int, Field(ge=MIN_SIDE)]
Overlap = Annotated[float, Field(ge=0, le=0.9)]  # with more, each pixel would lie in hundreds of tiles
QUARTER = 0.25  # default overlap
MAX_MAGNIFICATION = 4  # smaller tiles would not show a network more detail


class Tiling:
    """Cuts images into evenly spaced tiles of side T, which are resized to `size` (h, w).

    Each tile covers at least the fraction `overlap` of its neighbour.
    """

    def __init__(self, tile: int, overlap: float, size: tuple[int, int]) -> None:
        self.tile, self.overlap, self.size = tile, overlap, size
        place = (np.arange(tile) + 0.5) / tile
        self.window = (0.5 - 0.5 * np.cos(2 * np.pi * place) + 1e-3).astype(np.float32)  # (T,), nowhere 0

    def starts(self, length: int) -> list[int]:
        """Space tiles evenly along one side of an image, from end to end. -> the first pixel of each tile."""
        if length <= self.tile:
            return [0]
        stride = max(1, round(self.tile * (1 - self.overlap)))
        count = math.ceil((length - self.tile) / stride) + 1
        return np.linspace(0, length - self.tile, count).round().astype(int).tolist()

    def places(self, height: int, width: int) -> Iterator[tuple[int, int]]:
        """Yield the top left corner of each tile of an image, row by row."""
        return product(self.starts(height), self.starts(width))

    def cut(self, array: np.ndarray, place: tuple[int, int]) -> np.ndarray:
        """Cut a tile out of an image, mirrored beyond the end of a shorter side. (..., H, W) -> (..., h, w).

        Images (uint8) are resized with antialiasing, masks (bool) to the nearest pixel.
        """
        top, left = place
        part = array[..., top : top + self.tile, left : left + self.tile]
        missing = [(0, self.tile - side) for side in part.shape[-2:]]
        part = np.pad(part, [(0, 0)] * (part.ndim - 2) + missing, mode="symmetric")
        return part if part.shape[-2:] == self.size else resize(part, self.size)

    def canvas(self, height: int, width: int, channels: int) -> "Canvas":
        """Return an empty canvas for the maps of an image's tiles."""
        return Canvas(self, height, width, channels)


@checked
def make_tiling(tile: Tile | None, overlap: Overlap | None, size: Size) -> Tiling | None:
    """Make a `Tiling` from settings; None if `tile` is None.

    Raises:
        ValueError: a setting is out of range, or tiles are so small that they would only be magnified.
    """
    if tile is None:
        if overlap not in (None, QUARTER):
            raise ValueError(f"overlap={overlap:g} applies only to tiles: set tile too, or leave overlap out")
        return None
    tiling = Tiling(tile, QUARTER if overlap is None else overlap, parse_size(size))
    smallest = math.ceil(max(tiling.size) / MAX_MAGNIFICATION)
    if tile < smallest:
        raise ValueError(
            f"tile={tile} would be enlarged to image_size={max(tiling.size)}, {len(tiling.starts(1000)) ** 2:,} tiles "
            f"per megapixel: raise tile to {smallest} or more, or lower image_size"
        )
    return tiling


def describe_tiles(tiling: Tiling, sizes: Sequence[tuple[int, int]]) -> list[str]:
    """Report the number of tiles for images of `sizes` (width, height); a UserError if all are smaller than a tile."""
    if sizes and tiling.tile > (longest := max(map(max, sizes))):
        raise UserError(f"tile={tiling.tile} is larger than every image ({longest} pixels): lower it, or leave it out")
    counts = [len(tiling.starts(width)) * len(tiling.starts(height)) for width, height in sizes]
    return [f"{sum(counts) / len(counts):,.1f} tiles a training image, at most {max(counts):,}"] if counts else []


class Canvas:
    """Blends the maps (K, h, w) of tiles: a mean weighted by raised cosines, which fade towards the borders of a tile.

    Memory does not depend on the number of tiles, because the weight of a pixel is a product of a row and a column
    weight.
    """

    def __init__(self, tiling: Tiling, height: int, width: int, channels: int) -> None:
        self.tiling, self.height, self.width = tiling, height, width
        self.total = allocate((channels, height, width), np.float32)
        self.weights = [self._sum_windows(height), self._sum_windows(width)]

    def _sum_windows(self, length: int) -> np.ndarray:
        weight = np.zeros(length, np.float32)
        for start in self.tiling.starts(length):
            weight[start : start + self.tiling.tile] += self.tiling.window[: length - start]
        return weight

    def add(self, place: tuple[int, int], maps: np.ndarray) -> None:
        """Add the maps (K, h, w) of the tile at `place`."""
        (top, left), side = place, self.tiling.tile
        maps = maps if maps.shape[-2:] == (side, side) else resize(maps, (side, side))
        h, w = min(side, self.height - top), min(side, self.width - left)
        weight = self.tiling.window[:h, None] * self.tiling.window[:w]
        self.total[:, top : top + h, left : left + w] += maps[:, :h, :w] * weight

    def finish(self) -> np.ndarray:
        """Return the blended maps (K, H, W)."""
        self.total /= self.weights[0][:, None]
        self.total /= self.weights[1]
        return self.total


def resize(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize the last two axes: masks to the nearest pixel, anything else bilinearly. (..., H, W) -> (..., h, w)."""
    method = Image.Resampling.NEAREST if array.dtype == bool else Image.Resampling.BILINEAR
    planes = array.reshape(-1, *array.shape[-2:])
    resized = [np.asarray(Image.fromarray(plane).resize(size[::-1], method)) for plane in planes]
    return np.stack(resized).reshape(*array.shape[:-2], *size).astype(array.dtype)
