"""Frames: the H x W pixels into which every image of a run is brought, and the way back."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median

import numpy as np

from adlight.types import Box, check_integer

Size = int | Sequence[int]  # a side, or height and width


def parse_size(name: str, size: Size) -> tuple[int, int]:
    """Read a side, or height and width. -> (H, W).

    Raises:
        ValueError: it is neither; the text begins with `name`.
    """
    sides = list(size) if isinstance(size, Sequence) else [size, size]
    if len(sides) != 2 or isinstance(size, str):
        raise ValueError(f"{name} must be a side or [height, width], got {size}")
    for side in sides:
        check_integer(name, side, 1)
    return sides[0], sides[1]


class Frame:
    """The H x W pixels of every image that a network gets to see.

    Args:
        image_size: side, or height and width; images are resized to them, whatever their own shape.
        resize: side, or height and width, to resize to instead; the centre of `image_size` is kept.

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(self, image_size: Size, resize: Size | None = None) -> None:
        self.size = parse_size("image_size", image_size)  # (H, W)
        self.resize = self.size if resize is None else parse_size("resize", resize)
        if any(before < after for before, after in zip(self.resize, self.size, strict=True)):
            raise ValueError(f"resize {resize} is smaller than image_size {image_size}, which is cropped from it")

    def cut(self, array: np.ndarray) -> np.ndarray:
        """Bring a resized image into the frame: cut its centre out. (h, w, ...) -> (H, W, ...)."""
        top, left = ((before - after) // 2 for before, after in zip(array.shape, self.size, strict=False))
        return array[top : top + self.size[0], left : left + self.size[1]]

    def restore(self, maps: np.ndarray) -> np.ndarray:
        """Bring maps back to the resized image, zero where it was cut off. (..., H, W) -> (..., h, w)."""
        total = [side - inner for side, inner in zip(self.resize, self.size, strict=True)]
        edges = [(both // 2, both - both // 2) for both in total]
        return np.pad(maps, [(0, 0)] * (maps.ndim - 2) + edges)


def choose_image_size(sizes: Sequence[tuple[int, int]], frame: tuple[int, int]) -> tuple[int, int]:
    """Choose a frame of the images' usual shape and of about as many pixels as another frame has. -> (H, W).

    Its sides are multiples of what the other's are (of 16, 8, 4 or 2 pixels), as models have patches and strides.

    Args:
        sizes: widths and heights of images.
        frame: (H, W) of the other.
    """
    shape = math.exp(median(math.log(width / height) for width, height in sizes))
    side, unit = math.sqrt(math.prod(frame)), math.gcd(*frame, 16)
    height, width = (max(1, round(one / unit)) * unit for one in (side / math.sqrt(shape), side * math.sqrt(shape)))
    return height, width


def describe_shapes(sizes: Sequence[tuple[int, int]], frame: tuple[int, int]) -> str:
    """Say which shapes images of some widths and heights have, and which `image_size` is theirs."""
    if not sizes:
        return ""
    found = Counter(f"{width / height:.2f}" for width, height in sizes).most_common()
    shown = [f"{shape} ({count})" for shape, count in found[:3]] + [f"{len(found) - 3} more"] * (len(found) > 3)
    height, width = choose_image_size(sizes, frame)
    setting = height if height == width else f"[{height},{width}]"
    return f"shapes, width / height: {', '.join(shown)}; dataset.image_size={setting} keeps the usual one"


def scale_box(box: Box, shape: tuple[int, ...], size: tuple[int, int]) -> Box:
    """Scale a box from a map of `shape` (H, W) to an image of `size` (width, height), rounded outwards."""
    left, top, right, bottom = box
    (height, width), (w, h) = shape, size
    return left * w // width, top * h // height, -(-right * w // width), -(-bottom * h // height)
