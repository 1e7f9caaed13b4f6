"""Image files: decode them, read their sizes from their headers, and reject unusable files."""

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from adlight.types import UserError, first_line

# all errors that Pillow raises for damaged files (tested with 20,000 truncated or altered files of these formats)
READ_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
END_MARKS = {".png": b"IEND", ".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9"}
ADVICE = " (fix or remove the file, or set on_bad_image=skip)"  # end of an `UnreadableImage`'s message
SIDEWAYS = {5, 6, 7, 8}  # EXIF orientations that swap width and height


class UnreadableImage(UserError):
    """A file that cannot be decoded; the message names it."""


def read_image(path: str | Path) -> Image.Image:
    """Decode an image file completely and turn it upright; raise an `UnreadableImage` if this fails."""
    try:
        with Image.open(path) as image:
            check_single_image(image)
            image.load()
            return turn_upright(image)
    except (*READ_ERRORS, UserError) as error:
        raise _unreadable(path, error) from error


def read_size(path: str | Path) -> tuple[int, int]:
    """Read the width and height of the upright image from its header; raise an `UnreadableImage` if this fails."""
    try:
        with Image.open(path) as image:
            check_single_image(image)
            check_pixel_range(image)
            # Pillow turns TIFFs itself, and would decode a whole PNG to find EXIF data that is not at the beginning
            known = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
            turned = known and _orientation(image) in SIDEWAYS
            return (image.height, image.width) if turned else image.size
    except (*READ_ERRORS, UserError) as error:
        raise _unreadable(path, error) from error


def seems_truncated(path: str | Path) -> bool:
    """Return whether the last kilobyte of a PNG or JPEG lacks the end mark; only decoding is conclusive."""
    mark = END_MARKS.get(os.path.splitext(path)[1].lower(), b"")
    try:
        with open(path, "rb") as file:
            file.seek(max(os.path.getsize(path) - 1024, 0))
            return mark not in file.read()
    except OSError:
        return True


def _unreadable(path: str | Path, error: Exception) -> UnreadableImage:
    return UnreadableImage(f"cannot read image {path}: {first_line(error)}{ADVICE}")


def read_16_bit_peak(path: str | Path) -> int | None:
    """Return the largest value of a 16-bit image; None for other images and unreadable files."""
    with suppress(*READ_ERRORS), Image.open(path) as image:
        if image.mode.startswith("I;16"):
            return int(np.asarray(image).max())
    return None


def check_single_image(image: Image.Image) -> None:
    """Raise a UserError if an opened file holds several images."""
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a JPEG with a preview or a second view
        raise UserError("it holds several pictures (pages or an animation): save each as a separate image")


def check_pixel_range(image: Image.Image) -> None:
    """Raise a UserError if pixels are floating-point or 32-bit integer numbers, whose range is unknown."""
    kinds = {"F": "floating-point", "I": "32-bit integer"}
    if image.mode in kinds:
        raise UserError(f"{kinds[image.mode]} pixels have no known range: save the image with 8 or 16 bits per channel")


def turn_upright(image: Image.Image) -> Image.Image:
    """Rotate or mirror an image according to its EXIF data; an upright image is returned itself."""
    if _orientation(image) == 1:
        return image
    turned = ImageOps.exif_transpose(image)
    turned.format = image.format
    return turned


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF data, which viewers ignore, raises errors of many types
        value = None
    return value if isinstance(value, int) and 2 <= value <= 8 else 1
