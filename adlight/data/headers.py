"""What the header of an image file says: whether the image can be used, its size, and where up is."""

import os
from pathlib import Path

from PIL import ExifTags, Image, ImageOps

from adlight.types import UserError

# everything Pillow raises on damaged files (20,000 truncated or altered files of these formats were tried)
READ_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
END_MARKS = {".png": b"IEND", ".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9"}
SIDEWAYS = {5, 6, 7, 8}  # values of EXIF's orientation that exchange width and height


class UnreadableImage(UserError):
    """A file that cannot be decoded; the text names it."""


def read_size(path: str | Path) -> tuple[int, int]:
    """Read the width and height of an image file, when it is upright, from its header.

    Raises:
        UnreadableImage: the file is missing or not an image that can be used; the text names it.
    """
    try:
        with Image.open(path) as image:
            refuse_several(image)
            refuse_unknown_range(image)
            # Pillow turns a TIFF itself, and would decode a PNG to look for more EXIF data than stand at its beginning
            known = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
            turned = known and _orientation(image) in SIDEWAYS
            return (image.height, image.width) if turned else image.size
    except (*READ_ERRORS, UserError) as error:
        raise unreadable(path, error) from error


def seems_cut(path: str | Path) -> bool:
    """Say whether a PNG's or JPEG's last kilobyte lacks the format's end mark, so that decoding has to tell."""
    mark = END_MARKS.get(os.path.splitext(path)[1].lower(), b"")
    try:
        with open(path, "rb") as file:
            file.seek(max(os.path.getsize(path) - 1024, 0))
            return mark not in file.read()
    except OSError:
        return True


def unreadable(path: str | Path, error: Exception) -> UnreadableImage:
    """Name the file and what to do about it."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UnreadableImage(f"cannot read image {path}: {reason} (fix or remove the file, or set on_bad_image=skip)")


def refuse_several(image: Image.Image) -> None:
    """Refuse an opened file that holds several pictures.

    Raises:
        UserError: it does.
    """
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a JPEG with a preview or a second view
        raise UserError("it holds several pictures (pages or an animation): save each as an image of its own")


def refuse_unknown_range(image: Image.Image) -> None:
    """Refuse pixels whose range is unknown.

    Raises:
        UserError: floating-point or 32-bit integer pixels.
    """
    kinds = {"F": "floating-point", "I": "32-bit integer"}
    if image.mode in kinds:
        raise UserError(f"{kinds[image.mode]} pixels have no known range: save the image with 8 or 16 bits per channel")


def turn_upright(image: Image.Image) -> Image.Image:
    """Turn or mirror an image as its EXIF data asks for; the same object where nothing is asked for."""
    if _orientation(image) == 1:
        return image
    turned = ImageOps.exif_transpose(image)
    turned.format = image.format
    return turned


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF data raise anything; viewers show such an image as it is
        value = None
    return value if isinstance(value, int) and 2 <= value <= 8 else 1
