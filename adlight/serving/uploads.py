"""Uploads from untrusted clients: images read and decoded within limits of bytes, pixels and time."""

import asyncio
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive

from adlight.data.image_files import READ_ERRORS, check_single_image, turn_upright
from adlight.types import UserError, first_line

FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
FIELDS = 16  # largest number of form fields without a file; they are ignored
IN_MEMORY, NAME = 1 << 20, 200  # bytes of a body kept in memory; characters of a file name


@dataclass(frozen=True)
class Limits:
    """Limits of a request."""

    max_bytes: int  # of the body
    max_pixels: int  # of each image
    max_images: int
    seconds: float  # until the body is complete


@dataclass(frozen=True)
class Upload:
    """An uploaded file."""

    name: str
    file: BinaryIO
    field: str = "image"  # of the form


async def read_uploads(request: Request, limits: Limits) -> list[Upload]:
    """Read the files of a form (multipart/form-data), or the body as a single file.

    Raises:
        HTTPException: 400 no file or a malformed form, 408 too slow, 413 too large or too many files.
    """
    if int(request.headers.get("content-length", "0")) > limits.max_bytes:
        raise _too_large(limits)
    limited = Request(request.scope, _limit(request.receive, limits))
    try:
        async with asyncio.timeout(limits.seconds):
            uploads = await (_read_form if _is_form(request) else _read_body)(limited, limits)
    except TimeoutError:
        raise HTTPException(408, f"the image did not arrive within {limits.seconds:g} s") from None
    if not uploads:
        raise HTTPException(400, "no image: send one as the body, or several as files of multipart/form-data")
    return uploads


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


def _too_large(limits: Limits) -> HTTPException:
    return HTTPException(413, f"the request is larger than {limits.max_bytes / 1e6:g} MB (max_mb)")


def _limit(receive: Receive, limits: Limits) -> Receive:
    left = limits.max_bytes

    async def counted() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise _too_large(limits)
        return message

    return counted


async def _read_form(request: Request, limits: Limits) -> list[Upload]:
    form = await request.form(max_files=limits.max_images, max_fields=FIELDS)
    files = [(field, value) for field, value in form.multi_items() if isinstance(value, UploadFile)]
    return [Upload((file.filename or "image")[-NAME:], file.file, field) for field, file in files]


async def _read_body(request: Request, limits: Limits) -> list[Upload]:
    file: Any = SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 (closed with the last reference to it)
    async for part in request.stream():
        file.write(part)
    size = file.tell()
    file.seek(0)
    return [Upload("image", file)] if size else []


def decode(upload: Upload, max_pixels: int) -> Image.Image:
    """Decode an image completely and turn it upright; its pixels are counted before memory is allocated.

    Raises:
        HTTPException: 413 too many pixels, 415 unknown format, 422 damaged or unusable; the message names the file.
    """
    try:
        with Image.open(upload.file, formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise Image.DecompressionBombError
            check_single_image(image)
            image.load()
            return turn_upright(image)
    except UnidentifiedImageError:
        raise HTTPException(415, f"{upload.name} is not an image that can be read: send {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        limit = f"{max_pixels / 1e6:g} million pixels (max_megapixels)"
        raise HTTPException(413, f"{upload.name} has more than {limit}") from None
    except (*READ_ERRORS, UserError) as error:
        raise HTTPException(422, f"{upload.name} cannot be read: {first_line(error)}") from error
