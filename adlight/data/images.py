"""Image files and arrays: decode, convert and resize.

PNG, JPEG, BMP and TIFF are read in any common mode (grey, RGB, RGBA, palette, CMYK, 16-bit) and converted by one rule:
the image is turned upright as its EXIF data says, alpha is dropped, 16-bit values are divided by 256, and it becomes 3
channels, or 1 where `channels` is 1. What has no one picture or no known range of values is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
from PIL import Image

from adlight.data.arrays import allocate, bands
from adlight.data.floats import scale_floats
from adlight.data.frames import Frame
from adlight.data.headers import (
    READ_ERRORS,
    UnreadableImage,
    refuse_several,
    refuse_unknown_range,
    turn_upright,
    unreadable,
)
from adlight.types import UserError

if TYPE_CHECKING:  # torch takes seconds to import: not for --help
    from torch import Tensor

FILL = 128  # grey level beyond a region of interest, the same in every image
AnyImage: TypeAlias = Union[str, Path, Image.Image, np.ndarray, "Tensor"]
Selection: TypeAlias = Callable[[Image.Image, Path | None], tuple[Image.Image, np.ndarray]]
Range: TypeAlias = tuple[float, float] | None  # black and white of floats


def read_image(path: str | Path) -> Image.Image:
    """Decode an image file completely and turn it upright.

    Raises:
        UnreadableImage: the file is missing, truncated, or not an image that can be used; the text names it.
    """
    try:
        with Image.open(path) as image:
            refuse_several(image)
            image.load()
            return turn_upright(image)
    except (*READ_ERRORS, UserError) as error:
        raise unreadable(path, error) from error


def to_pil(image: AnyImage, value_range: Range = None) -> Image.Image:
    """Convert a path, a PIL image, an array (H, W) or (H, W, C) or a tensor (H, W) or (C, H, W) to a PIL image.

    Floats become 8 bits where `value_range` says which of them are black and white.

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
    dtype = str(image.dtype).removeprefix("torch.")
    if "float" in dtype and value_range is not None:
        image, dtype = scale_floats(image, value_range), "uint8"
    if dtype not in ("uint8", "uint16"):
        advice = "convert them to uint8 (0 to 255) or uint16" + ", or state range=(black, white)" * ("float" in dtype)
        raise UserError(f"{dtype} pixels have no known range: {advice}")
    if isinstance(image, np.ndarray):
        array: np.ndarray[Any, Any] = image
    else:
        array = image.permute(1, 2, 0).numpy(force=True) if image.ndim == 3 else image.numpy(force=True)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or not array.size:
        raise UserError(
            f"shape {tuple(image.shape)} is not (H, W), (H, W, C) or a tensor's (C, H, W) with 1, 3 or 4 channels"
        )
    array = (array >> 8).astype(np.uint8) if array.dtype == np.uint16 else array
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


@dataclass(frozen=True)
class PreparedImage:
    """An image on its way to a model."""

    pixels: np.ndarray  # (C, H, W) uint8
    size: tuple[int, int]  # its own width and height
    path: Path | None  # None where it was not read from a file
    content: np.ndarray | None = None  # (H, W) bool, the region of interest


def prepare_image(
    image: AnyImage,
    channels: int,
    frame: Frame,
    value_range: Range = None,
    select: Selection | None = None,
) -> PreparedImage:
    """Decode an image and bring it into the frame, as in training; see `to_pil` and `to_input_array`.

    `select` makes what does not count grey, and says what counts (H, W); see `RegionOfInterest.apply`.

    Raises:
        UserError: it cannot be read; the text names the file, or says what is wrong with the array.
    """
    path = Path(image) if isinstance(image, str | Path) else None
    try:
        picture, content = to_pil(image, value_range), None
        if select is not None:
            picture, content = select(picture, path)
        pixels = to_input_array(picture, channels, frame)
        if content is not None:
            pixels = fill_outside(pixels, content)
        return PreparedImage(pixels, picture.size, path, content)
    except UnreadableImage:
        raise
    except (*READ_ERRORS, UserError) as error:
        raise UserError(f"cannot read image {path or f'({type(image).__name__})'}: {error}") from error


def fill_outside(pixels: np.ndarray, content: np.ndarray) -> np.ndarray:
    """Make what does not count grey, in place. (C, H, W) uint8, (H, W) bool -> (C, H, W) uint8."""
    for rows in bands(content.shape):
        pixels[:, rows][:, ~content[rows]] = FILL
    return pixels


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Convert an image of any mode to 8 bits and 1 or 3 channels, by the rule at the top of this file.

    Returns:
        The same object if the image is in this form already.

    Raises:
        UserError: floating-point or 32-bit integer pixels, whose range is unknown.
    """
    refuse_unknown_range(image)
    if image.mode.startswith("I"):  # 16-bit grey
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA").convert("RGB")
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def to_input_array(image: Image.Image, channels: int, frame: Frame) -> np.ndarray:
    """Convert an image to the (C, H, W) uint8 of a frame, antialiased; a large one lies in a file, see `allocate`."""
    height, width = frame.fit(*image.size)
    if image.size != (width, height):
        image = to_channels(image, channels)
        image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0)
    array = allocate((channels, height, width), np.uint8)
    for rows in bands((height, width)):  # a large image is not copied as a whole
        band = to_channels(image.crop((0, rows.start, width, rows.stop)), channels)
        array[:, rows] = np.atleast_3d(np.asarray(band)).transpose(2, 0, 1)
    return np.ascontiguousarray(frame.cut(array.transpose(1, 2, 0)).transpose(2, 0, 1))


def to_mask(image: Image.Image) -> np.ndarray:
    """Convert a mask image to (H, W) bool: what is not black, in a JPEG what is brighter than 127, is a defect.

    A JPEG's compression leaves grey pixels beside every edge. 16-bit masks are not divided by 256, as many tools
    write 1 or 255 into them.

    Raises:
        UserError: its opacity varies, so that it could be meant in two ways; or it marks nothing, or everything.
    """
    grey = image.mode != "LA" and image.mode[0] in "L1I"
    if image.has_transparency_data and image.mode[0] != "I":
        darkest, brightest = image.convert("RGBA").getchannel("A").getextrema()
        if darkest != brightest:
            raise UserError("its alpha channel varies: save it without one, black where the part is good, else white")
    mask = np.asarray(image if grey else to_channels(image, 1)) > (127 if image.format == "JPEG" else 0)
    if not mask.any():
        raise UserError("it marks nothing, but its image is anomalous: draw the defect, or remove the mask")
    if mask.all():
        raise UserError("it marks every pixel: black is where the part is good; draw the defect, or remove the mask")
    return mask
