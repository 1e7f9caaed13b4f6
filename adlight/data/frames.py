"""Frames: the H x W pixels into which every image of a run is brought, and the way back.

Where images keep their shape, each lies in its frame's top left corner; the rest is padding, which nothing may look at.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from adlight.settings import checked
from adlight.types import Batch, Box

if TYPE_CHECKING:  # torch takes seconds to import: not for --help
    from torch import Tensor

Side = Annotated[int, Field(ge=1, le=2**14)]  # a square of more takes more than 0.8 GB
Size = Side | Annotated[Sequence[Side], Field(min_length=2, max_length=2)]  # a side, or height and width
BENT = 1.1  # change of an image's shape that is too much
LONGEST = 2.5  # of an image's longer side in units of the shorter one, before it is scaled down further
THINNEST = 8  # pixels: windows of scores would not fit into less


def parse_size(size: Size) -> tuple[int, int]:
    """Read a side, or height and width. -> (H, W)."""
    height, width = size if isinstance(size, Sequence) else (size, size)
    return height, width


class Frame:
    """The H x W pixels of every image that a network gets to see.

    Args:
        image_size: side, or height and width.
        resize: side, or height and width, to resize to instead; the centre of `image_size` is kept. Of images that
            keep their shape: the shorter side, where that fits into the frame.
        keep_shape: scale images so that they just fit into the frame, and pad them; otherwise they are resized to it,
            whatever their own shape.

    Raises:
        ValueError: a setting out of range, or two that exclude each other.
    """

    @checked
    def __init__(self, image_size: Size, resize: Size | None = None, keep_shape: bool = False) -> None:
        self.keep_shape = keep_shape
        self.size = parse_size(image_size)  # (H, W)
        self.resize = self.size if resize is None else parse_size(resize)
        if keep_shape:
            if self.resize[0] != self.resize[1] and resize is not None:
                raise ValueError(f"resize must be one side, the shorter one, where keep_shape is set, got {resize}")
            self.shorter = max(self.size) if resize is None else self.resize[0]
        elif any(before < after for before, after in zip(self.resize, self.size, strict=True)):
            raise ValueError(f"resize={resize} is smaller than image_size={image_size}, which is cropped from it")

    def fit(self, width: int, height: int) -> tuple[int, int]:
        """Compute the height and width to which an image is resized.

        Raises:
            ValueError: it has next to no pixels, or keeps its shape and next to nothing of it would be left.
        """
        if min(width, height) < THINNEST:
            raise ValueError(f"its {width}x{height} pixels are too few: at least {THINNEST}x{THINNEST} are needed")
        if not self.keep_shape:
            return self.resize
        scale = min(self.size[0] / height, self.size[1] / width, self.shorter / min(height, width))
        h, w = (min(side, round(own * scale)) for side, own in zip(self.size, (height, width), strict=True))
        if min(h, w) < min(THINNEST, *self.size):
            raise ValueError(
                f"its {width}x{height} pixels would become {w}x{h}: too thin for keep_shape in image_size {self.size}"
            )
        return h, w

    def cut(self, array: np.ndarray) -> np.ndarray:
        """Bring a resized image into the frame: cut its centre out, or pad it. (h, w, ...) -> (H, W, ...)."""
        if self.keep_shape:
            edges = [(0, side - inner) for side, inner in zip(self.size, array.shape, strict=False)]
            return np.pad(array, edges + [(0, 0)] * (array.ndim - 2))
        top, left = ((before - after) // 2 for before, after in zip(array.shape, self.size, strict=False))
        return array[top : top + self.size[0], left : left + self.size[1]]

    def restore(self, maps: np.ndarray, width: int, height: int) -> np.ndarray:
        """Bring maps back to a resized image, zero where it was cut off. (..., H, W) -> (..., h, w)."""
        if self.keep_shape:
            h, w = self.fit(width, height)
            return maps[..., :h, :w]
        total = [side - inner for side, inner in zip(self.resize, self.size, strict=True)]
        edges = [(both // 2, both - both // 2) for both in total]
        return np.pad(maps, [(0, 0)] * (maps.ndim - 2) + edges)


class WholeFrame(Frame):
    """The pixels that an image has, of whatever size."""

    def __init__(self) -> None:
        super().__init__(1)

    def fit(self, width: int, height: int) -> tuple[int, int]:
        """Leave an image as it is. -> its height and width."""
        return height, width

    def cut(self, array: np.ndarray) -> np.ndarray:
        """Leave an image as it is."""
        return array

    def restore(self, maps: np.ndarray, width: int, height: int) -> np.ndarray:
        """Leave maps as they are."""
        return maps


def is_content(size: "Tensor | None", pixel: "Tensor") -> "Tensor":
    """Say which pixels are no padding. (B, 2) heights and widths, maps (B, H, W) -> (B, H, W) bool.

    Args:
        size: None where nothing is padded.
        pixel: any values.
    """
    if size is None:
        return pixel.new_ones(()).bool().expand(pixel.shape)
    place = size.new_ones(pixel.shape[1:]).nonzero().unflatten(0, pixel.shape[1:])  # (H, W, 2)
    return (place < size[:, None, None]).all(-1)


def content_of(batch: Batch) -> "Tensor":
    """Say which pixels of a batch count: neither padding nor outside a region of interest. -> (B, H, W) bool."""
    return batch["content"] if "content" in batch else is_content(batch.get("size"), batch["mask"])


def find_content(size: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """Say which pixels are no padding. (B, 2) heights and widths, or None where nothing is padded -> `shape` (B, H, W).

    As `is_content`, for arrays.
    """
    if size is None:
        return np.broadcast_to(np.True_, shape)
    row, column = np.indices(shape[1:])
    return (row < size[:, :1, None]) & (column < size[:, 1:, None])


def group_by_size(size: "Tensor") -> "Iterator[tuple[Tensor, int, int]]":
    """Group images of one size, so that no padding has to be looked at. (B, 2) -> (rows, height, width) each."""
    sizes, group = size.unique(dim=0, return_inverse=True)
    for number, (height, width) in enumerate(sizes.tolist()):
        yield (group == number).nonzero()[:, 0], height, width


def choose_frame(sizes: Sequence[tuple[int, int]], side: int) -> dict[str, Any]:
    """Choose the arguments of a `Frame` in which images are not bent: a square, their usual shape, or each its own.

    Their shorter side gets `side` pixels. A frame's sides are multiples of what `side` is one of (of 16, 8, 4 or 2), as
    models have patches and strides.

    Args:
        sizes: widths and heights of images.
        side: the wanted one, in pixels.
    """
    unit = math.gcd(side, 16)
    shapes = [width / height for width, height in sizes]
    usual = math.exp(median(map(math.log, shapes))) if shapes else 1.0
    for shape in (1.0, usual):
        longer = math.ceil(side * min(LONGEST, max(shape, 1 / shape)) / unit) * unit
        height, width = (longer, side) if shape < 1 else (side, longer)
        if all(max(one * height / width, width / height / one) <= BENT for one in shapes):
            return {"image_size": side if height == width else [height, width], "resize": None, "keep_shape": False}
    largest = Frame(math.ceil(side * LONGEST), side, keep_shape=True)
    sides = zip(*(largest.fit(*size) for size in sizes), strict=True)
    return {"image_size": [math.ceil(max(one) / unit) * unit for one in sides], "resize": side, "keep_shape": True}


def describe_shapes(sizes: Sequence[tuple[int, int]], side: int) -> str:
    """Say which shapes images of some widths and heights have, and what `choose_frame` would choose."""
    if not sizes:
        return ""
    found = Counter(f"{width / height:.2f}" for width, height in sizes).most_common()
    shown = [f"{shape} ({count})" for shape, count in found[:3]] + [f"{len(found) - 3} more"] * (len(found) > 3)
    chosen = {name: value for name, value in choose_frame(sizes, side).items() if value}
    settings = " ".join(f"dataset.{name}={str(value).lower().replace(' ', '')}" for name, value in chosen.items())
    return f"shapes, width / height: {', '.join(shown)}; dataset.keep_shape=auto chooses {settings}"


def scale_box(box: Box, shape: tuple[int, ...], size: tuple[int, int]) -> Box:
    """Scale a box from a map of `shape` (H, W) to an image of `size` (width, height), rounded outwards."""
    left, top, right, bottom = box
    (height, width), (w, h) = shape, size
    return left * w // width, top * h // height, -(-right * w // width), -(-bottom * h // height)
