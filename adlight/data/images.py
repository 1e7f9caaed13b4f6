"""Conversion of images of any mode, and of arrays, to 8 bits and 1 or 3 channels, in the frame of a model.

All common modes (grey, RGB, RGBA, palette, CMYK, 16-bit) are converted alike: the image is turned upright according to
its EXIF data, alpha is dropped, and 16-bit values are divided by 256. Files with several images and pixels without a
known range of values are rejected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

import numpy as np
from PIL import Image

from adlight.data.arrays import allocate, bands
from adlight.data.frames import Frame
from adlight.data.image_files import READ_ERRORS, UnreadableImage, check_pixel_range, read_image, turn_upright
from adlight.types import UserError

if TYPE_CHECKING:  # torch takes seconds to import: not for --help
    from torch import Tensor

FILL = 128  # grey level outside a region of interest
AnyImage: TypeAlias = Union[str, Path, Image.Image, np.ndarray, "Tensor"]
Selection: TypeAlias = Callable[[Image.Image, Path | None], tuple[Image.Image, np.ndarray]]
Range: TypeAlias = tuple[float, float] | None  # float values of black and white


@dataclass(frozen=True)
class PreparedImage:
    """An image converted for a model."""

    pixels: np.ndarray  # (C, H, W) uint8
    size: tuple[int, int]  # width and height of the original
    path: Path | None  # None if it was not read from a file
    content: np.ndarray | None = None  # (H, W) bool, the region of interest


def prepare_image(
    image: AnyImage, channels: int, frame: Frame, value_range: Range = None, select: Selection | None = None
) -> PreparedImage:
    """Decode an image, apply a region of interest (`select`), and fit the image into the frame, as in training.

    Raises:
        UserError: the image cannot be read; the message names the file, or the problem with the array.
    """
    path = Path(image) if isinstance(image, str | Path) else None
    try:
        picture, content = to_pil(image, value_range), None
        if select is not None:
            picture, content = select(picture, path)
        return PreparedImage(to_input_array(picture, channels, frame, content), picture.size, path, content)
    except UnreadableImage:
        raise
    except (*READ_ERRORS, UserError) as error:
        raise UserError(f"cannot read image {path or f'({type(image).__name__})'}: {error}") from error


def to_pil(image: AnyImage, value_range: Range = None) -> Image.Image:
    """Convert a path, a PIL image, an array (H, W) or (H, W, C) or a tensor (H, W) or (C, H, W) to a PIL image.

    Floats are scaled to 8 bits if `value_range` states the values of black and white.

    Raises:
        UserError: the file cannot be read, or the array is not an image of type uint8 or uint16, or of floats in range.
    """
    if isinstance(image, str | Path):
        image = read_image(image)
    if isinstance(image, Image.Image):
        image = turn_upright(image)
        if image.mode != "F" or value_range is None:
            return image
        image = np.asarray(image)
    if not hasattr(image, "dtype"):
        raise UserError("it is neither a path nor a PIL image, an array or a tensor")
    array = _to_bytes(image, value_range)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or not array.size:
        shape = tuple(image.shape)
        raise UserError(f"shape {shape} is not (H, W), (H, W, C) or a tensor's (C, H, W) with 1, 3 or 4 channels")
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


def _to_bytes(image: np.ndarray | Tensor, value_range: Range) -> np.ndarray:
    """Convert an array, or a tensor with channels first, to an array of 8 bits with channels last."""
    dtype = str(image.dtype).removeprefix("torch.")
    is_float = "float" in dtype
    if dtype not in ("uint8", "uint16") and (not is_float or value_range is None):
        or_range = ", or state range=(black, white)" if is_float else ""
        raise UserError(f"{dtype} pixels have no known range: convert them to uint8 (0 to 255) or uint16{or_range}")
    if not isinstance(image, np.ndarray):
        image = image.double() if is_float else image  # NumPy has no bfloat16
        image = (image.permute(1, 2, 0) if image.ndim == 3 else image).numpy(force=True)
    if is_float and value_range is not None:
        return _scale_floats(image, value_range)
    return (image >> 8).astype(np.uint8) if dtype == "uint16" else image


def _scale_floats(array: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    try:
        black, white = map(float, value_range if not isinstance(value_range, str) else ())
    except (TypeError, ValueError) as error:
        raise UserError(f"range={value_range!r} must be two numbers in ascending order") from error
    if not -np.inf < black < white < np.inf:
        raise UserError(f"range=({black:g}, {white:g}) must be two numbers in ascending order")
    array = array.astype(np.float64)
    if array.size and not (black <= array.min() and array.max() <= white):  # also rejects NaN
        raise UserError(f"values from {array.min():g} to {array.max():g} lie outside range=({black:g}, {white:g})")
    return ((array - black) * (255 / (white - black))).round().astype(np.uint8)


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Convert an image of any mode to 8 bits and 1 or 3 channels, as described at the top of this file.

    An image that is in this form already is returned itself.
    """
    check_pixel_range(image)
    if image.mode.startswith("I"):  # 16-bit grey
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA").convert("RGB")
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def to_input_array(image: Image.Image, channels: int, frame: Frame, content: np.ndarray | None = None) -> np.ndarray:
    """Convert an image to (C, H, W) uint8 in a frame, resized with antialiasing; see `allocate` for large images.

    Pixels outside the region of interest `content` (H, W) become grey, as resizing mixes pixels across its border.
    """
    height, width = frame.fit(*image.size)
    if image.size != (width, height):
        image = to_channels(image, channels)
        image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0)
    array = allocate((channels, height, width), np.uint8)
    for rows in bands((height, width)):  # a large image is not copied as a whole
        band = to_channels(image.crop((0, rows.start, width, rows.stop)), channels)
        array[:, rows] = np.atleast_3d(np.asarray(band)).transpose(2, 0, 1)
    array = np.ascontiguousarray(frame.cut(array.transpose(1, 2, 0)).transpose(2, 0, 1))
    if content is not None:
        for rows in bands(content.shape):
            array[:, rows][:, ~content[rows]] = FILL
    return array


def to_mask(image: Image.Image) -> np.ndarray:
    """Convert a mask image to (H, W) bool, True where it is not black; in a JPEG, where it is brighter than 127.

    The threshold for JPEGs ignores the grey pixels that compression leaves beside edges. Values of 16-bit masks are not
    divided by 256, because many tools write 1 or 255.

    Raises:
        UserError: the opacity varies, which makes the mask ambiguous, or the mask marks no pixel, or every pixel.
    """
    grey = image.mode != "LA" and image.mode[0] in "L1I"
    if image.has_transparency_data and image.mode[0] != "I":
        darkest, brightest = image.convert("RGBA").getchannel("A").getextrema()
        if darkest != brightest:
            raise UserError("its alpha channel varies: save it without alpha, black where the part is good, else white")
    mask = np.asarray(image if grey else to_channels(image, 1)) > (127 if image.format == "JPEG" else 0)
    if not mask.any():
        raise UserError("it marks nothing, but its image is anomalous: draw the defect, or remove the mask")
    if mask.all():
        raise UserError("it marks every pixel: black is where the part is good; draw the defect, or remove the mask")
    return mask
