"""Frames: the H x W pixels into which every image of a run is brought, and the way back.

Where images keep their shape, each lies in its frame's top left corner; the rest is padding, which nothing may look at.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from adlight.types import Box, check_integer

if TYPE_CHECKING:  # torch takes seconds to import: not for --help
    from torch import Tensor

Size = int | Sequence[int]  # a side, or height and width
BENT = 1.1  # change of an image's shape from which padding it is advised
THINNEST = 8  # pixels: windows of scores would not fit into less


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
        image_size: side, or height and width.
        resize: side, or height and width, to resize to instead; the centre of `image_size` is kept.
        keep_shape: scale images so that they just fit into the frame, and pad them; otherwise they are resized to it,
            whatever their own shape.

    Raises:
        ValueError: a setting out of range, or two that exclude each other.
    """

    def __init__(self, image_size: Size, resize: Size | None = None, keep_shape: bool = False) -> None:
        if keep_shape and resize is not None:
            raise ValueError(f"keep_shape pads images, resize={resize} crops them: set one of the two")
        self.keep_shape = bool(keep_shape)
        self.size = parse_size("image_size", image_size)  # (H, W)
        self.resize = self.size if resize is None else parse_size("resize", resize)
        if any(before < after for before, after in zip(self.resize, self.size, strict=True)):
            raise ValueError(f"resize {resize} is smaller than image_size {image_size}, which is cropped from it")

    def fit(self, width: int, height: int) -> tuple[int, int]:
        """Compute the height and width to which an image is resized.

        Raises:
            ValueError: it keeps its shape, and next to nothing of it would be left.
        """
        if not self.keep_shape:
            return self.resize
        scale = min(self.size[0] / height, self.size[1] / width)
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


def group_by_size(size: "Tensor") -> "Iterator[tuple[Tensor, int, int]]":
    """Group images of one size, so that no padding has to be looked at. (B, 2) -> (rows, height, width) each."""
    sizes, group = size.unique(dim=0, return_inverse=True)
    for number, (height, width) in enumerate(sizes.tolist()):
        yield (group == number).nonzero()[:, 0], height, width


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
    setting = f"dataset.image_size={height if height == width else f'[{height},{width}]'}"
    bent = sum(max(one := w / h * height / width, 1 / one) > BENT for w, h in sizes)
    advice = f"{setting} keeps the usual one" + (
        f", dataset.keep_shape=true that of the {bent} image(s) of other shapes too" if bent else ""
    )
    return f"shapes, width / height: {', '.join(shown)}; {advice}"


def scale_box(box: Box, shape: tuple[int, ...], size: tuple[int, int]) -> Box:
    """Scale a box from a map of `shape` (H, W) to an image of `size` (width, height), rounded outwards."""
    left, top, right, bottom = box
    (height, width), (w, h) = shape, size
    return left * w // width, top * h // height, -(-right * w // width), -(-bottom * h // height)
