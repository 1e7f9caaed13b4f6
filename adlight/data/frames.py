"""Frames: the H x W pixels to which every image of a run is resized, cropped or padded, and the way back.

Images that keep their shape lie in the top left corner of the frame; the rest is padding, which is ignored.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from adlight.settings import checked
from adlight.types import Batch, Box

if TYPE_CHECKING:  # torch takes seconds to import: not for --help
    from torch import Tensor

Side = Annotated[int, Field(ge=1, le=2**14)]  # a larger square would take more than 0.8 GB
Size = Side | Annotated[Sequence[Side], Field(min_length=2, max_length=2)]  # a side, or height and width
MAX_DISTORTION = 1.1  # largest factor by which resizing may change an aspect ratio
MAX_ASPECT = 2.5  # ratio of the longer side to the shorter above which an image is scaled down further
MIN_SIDE = 8  # pixels; the windows of scores do not fit into less


def parse_size(size: Size) -> tuple[int, int]:
    """Convert a side, or height and width, to (H, W)."""
    height, width = size if isinstance(size, Sequence) else (size, size)
    return height, width


class Frame:
    """The H x W pixels of the images that a network sees.

    Args:
        image_size: side, or height and width.
        resize: side, or height and width, to which images are resized before the central `image_size` is cropped. With
            `keep_shape`: length of the shorter side, if the image then fits into the frame.
        keep_shape: scale images to fit into the frame and pad them, instead of resizing them to the frame's shape.

    Raises:
        ValueError: a setting is out of range, or two exclude each other.
    """

    @checked
    def __init__(self, image_size: Size, resize: Size | None = None, keep_shape: bool = False) -> None:
        self.keep_shape = keep_shape
        self.size = parse_size(image_size)  # (H, W)
        self.resize = self.size if resize is None else parse_size(resize)
        if keep_shape:
            if self.resize[0] != self.resize[1] and resize is not None:
                raise ValueError(f"resize must be the length of the shorter side if keep_shape is set, got {resize}")
            self.shorter = max(self.size) if resize is None else self.resize[0]
        elif any(before < after for before, after in zip(self.resize, self.size, strict=True)):
            raise ValueError(f"resize={resize} is smaller than image_size={image_size}, which is cropped from it")

    def fit(self, width: int, height: int) -> tuple[int, int]:
        """Compute the height and width to which an image is resized.

        Raises:
            ValueError: the image has too few pixels, or would become too thin.
        """
        if min(width, height) < MIN_SIDE:
            raise ValueError(f"its {width}x{height} pixels are too few: at least {MIN_SIDE}x{MIN_SIDE} are needed")
        if not self.keep_shape:
            return self.resize
        scale = min(self.size[0] / height, self.size[1] / width, self.shorter / min(height, width))
        h, w = (min(side, round(own * scale)) for side, own in zip(self.size, (height, width), strict=True))
        if min(h, w) < min(MIN_SIDE, *self.size):
            raise ValueError(
                f"its {width}x{height} pixels would become {w}x{h}: too thin for keep_shape in image_size {self.size}"
            )
        return h, w

    def cut(self, array: np.ndarray) -> np.ndarray:
        """Crop the center of a resized image, or pad it. (h, w, ...) -> (H, W, ...)."""
        if self.keep_shape:
            edges = [(0, side - inner) for side, inner in zip(self.size, array.shape, strict=False)]
            return np.pad(array, edges + [(0, 0)] * (array.ndim - 2))
        top, left = ((before - after) // 2 for before, after in zip(array.shape, self.size, strict=False))
        return array[top : top + self.size[0], left : left + self.size[1]]

    def restore(self, maps: np.ndarray, width: int, height: int) -> np.ndarray:
        """Undo `cut` for maps of a width x height image; cropped parts are zero. (..., H, W) -> (..., h, w)."""
        if self.keep_shape:
            h, w = self.fit(width, height)
            return maps[..., :h, :w]
        total = [side - inner for side, inner in zip(self.resize, self.size, strict=True)]
        edges = [(both // 2, both - both // 2) for both in total]
        return np.pad(maps, [(0, 0)] * (maps.ndim - 2) + edges)


class WholeFrame(Frame):
    """The original pixels of each image, of any size."""

    def __init__(self) -> None:
        super().__init__(1)

    def fit(self, width: int, height: int) -> tuple[int, int]:
        """Return the image's own height and width."""
        return height, width

    def cut(self, array: np.ndarray) -> np.ndarray:
        """Return the image unchanged."""
        return array

    def restore(self, maps: np.ndarray, width: int, height: int) -> np.ndarray:
        """Return the maps unchanged."""
        return maps


def is_content(size: "Tensor | None", pixel: "Tensor") -> "Tensor":
    """Find the pixels of maps that are not padding. (B, 2) heights and widths or None, (B, H, W) -> (B, H, W) bool."""
    import torch

    if size is None:
        return torch.ones((), dtype=torch.bool, device=pixel.device).expand(pixel.shape)
    row, column = (torch.arange(side, device=size.device) for side in pixel.shape[1:])
    return (row[:, None] < size[:, :1, None]) & (column < size[:, 1:, None])


def size_of(batch: Batch, row: int) -> tuple[int, int]:
    """Return the height and width of an image of a batch, without padding."""
    height, width = batch["size"][row].tolist() if "size" in batch else batch["image"].shape[2:]
    return height, width


def content_of(batch: Batch) -> "Tensor":
    """Find the pixels of a batch that are neither padding nor outside a region of interest. -> (B, H, W) bool."""
    return batch["content"] if "content" in batch else is_content(batch.get("size"), batch["mask"])


def find_content(size: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """Find the pixels that are not padding; `is_content` for arrays. (B, 2) -> `shape` (B, H, W) bool."""
    if size is None:
        return np.broadcast_to(np.True_, shape)
    row, column = np.indices(shape[1:])
    return (row < size[:, :1, None]) & (column < size[:, 1:, None])


def group_by_size(size: "Tensor") -> "Iterator[tuple[Tensor, int, int]]":
    """Group images of equal size, so that each group needs no padding. (B, 2) -> (rows, height, width) per group."""
    sizes, group = size.unique(dim=0, return_inverse=True)
    for number, (height, width) in enumerate(sizes.tolist()):
        yield (group == number).nonzero()[:, 0], height, width


def choose_frame(sizes: Sequence[tuple[int, int]], side: int) -> dict[str, Any]:
    """Choose the arguments of a `Frame` that hardly distorts images: a square, their median shape, or `keep_shape`.

    Images, given by widths and heights, are resized to `side` pixels along the shorter side. The sides of the frame are
    multiples of gcd(`side`, 16), because models have patches and strides.
    """
    unit = math.gcd(side, 16)
    ratios = [width / height for width, height in sizes]
    typical = math.exp(median(map(math.log, ratios))) if ratios else 1.0
    for shape in (1.0, typical):
        longer = math.ceil(side * min(MAX_ASPECT, max(shape, 1 / shape)) / unit) * unit
        height, width = (longer, side) if shape < 1 else (side, longer)
        if all(max(ratio * height / width, width / height / ratio) <= MAX_DISTORTION for ratio in ratios):
            return {"image_size": side if height == width else [height, width], "resize": None, "keep_shape": False}
    largest = Frame(math.ceil(side * MAX_ASPECT), side, keep_shape=True)
    heights, widths = zip(*(largest.fit(*size) for size in sizes), strict=True)
    size = [math.ceil(max(lengths) / unit) * unit for lengths in (heights, widths)]
    return {"image_size": size, "resize": side, "keep_shape": True}


def describe_shapes(sizes: Sequence[tuple[int, int]], side: int) -> str:
    """Describe the shapes of images, given as widths and heights, and the frame that `choose_frame` chooses."""
    if not sizes:
        return ""
    shapes = count_most_common(f"{width / height:.2f}" for width, height in sizes)
    chosen = {name: value for name, value in choose_frame(sizes, side).items() if value}
    settings = " ".join(f"dataset.{name}={str(value).lower().replace(' ', '')}" for name, value in chosen.items())
    return f"shapes, width / height: {shapes}; dataset.keep_shape=auto chooses {settings}"


def count_most_common(values: Iterable[str]) -> str:
    """List the three most common values with their counts, and the number of other values."""
    counts = Counter(values).most_common()
    more = [f"{len(counts) - 3} more"] if counts[3:] else []
    return ", ".join([f"{value} ({count})" for value, count in counts[:3]] + more)


def scale_box(box: Box, shape: tuple[int, ...], size: tuple[int, int]) -> Box:
    """Scale a box from a map of `shape` (H, W) to an image of `size` (width, height), rounding outwards."""
    left, top, right, bottom = box
    (height, width), (w, h) = shape, size
    return left * w // width, top * h // height, math.ceil(right * w / width), math.ceil(bottom * h / height)
