"""Decoded images of a split, in memory or in a memory-mapped file that all processes and later runs share."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
import PIL
import torch
from torch import Tensor

from adlight.data.arrays import reserve
from adlight.data.frames import Frame
from adlight.locks import hold_lock
from adlight.types import Record, UserError

FORMAT = 1  # version of the file, which holds sizes, checksums, images, masks and messages (JSON), in this order

Shape = tuple[int, int, int]  # (C, H, W)


class DecodedImage(NamedTuple):
    """An image and its mask, decoded and brought into the frame."""

    image: np.ndarray  # (C, H, W) uint8
    mask: np.ndarray | None  # (H, W) bool; None if there is none
    size: tuple[int, int]  # height and width without padding
    content: np.ndarray | None  # (H, W) bool, the region of interest; None for all


class Decoded:
    """N images of one shape with their sizes, checksums and, if `masked`, masks.

    They are views of `store`, or of new memory if it is None. Regions of interest, if `selected`, are kept in memory
    only.
    """

    def __init__(
        self, count: int, shape: Shape, masked: bool, store: np.ndarray | None = None, selected: bool = False
    ) -> None:
        self.verified = np.full(count, store is None)
        heads, masks = 16 * count, math.prod(shape[1:]) * count * masked
        ends = np.cumsum([heads, 8 * count, math.prod(shape) * count, masks]).tolist()
        self.nbytes = ends[-1]
        store = np.zeros(self.nbytes, np.uint8) if store is None else store[: self.nbytes]
        sizes, checks, images, masks_ = (torch.from_numpy(part) for part in np.split(store, ends[:-1]))
        self.sizes, self.checks = sizes.view(torch.long).view(count, 2), checks.view(torch.long)  # (N, 2), (N,)
        self.images, self.masks = images.view(count, *shape), masks_.view(torch.bool).view(-1, *shape[1:])
        self.contents = torch.zeros(count if selected else 0, *shape[1:], dtype=torch.bool)

    def put(self, i: int, decoded: DecodedImage) -> None:
        """Store image `i`."""
        self.images[i], self.sizes[i] = torch.from_numpy(decoded.image), torch.tensor(decoded.size)
        for target, found in ((self.masks, decoded.mask), (self.contents, decoded.content)):
            if found is not None:
                target[i] = torch.from_numpy(found)

    def checksum(self, i: int) -> int:
        """Compute the checksum of an image, its size and its mask."""
        found = crc32(self.images[i].numpy().data, crc32(self.sizes[i].numpy().data))
        return crc32(self.masks[i].numpy().data, found) if len(self.masks) else found

    def damaged(self, rows: Sequence[int]) -> bool:
        """Return whether the checksum of an image is wrong; each image is checked once."""
        fresh = [i for i in rows if not self.verified[i]]
        self.verified[fresh] = True
        return any(self.checksum(i) != self.checks[i] for i in fresh)


def select_rows(stored: Tensor, rows: Tensor) -> Tensor:
    """Copy rows of a tensor on the CPU, such as the images of a batch. (N, ...), (B,) -> (B, ...)."""
    return torch.from_numpy(stored.numpy().take(rows.numpy(), axis=0))  # into memory of numpy, see `to_unit_range`


def to_unit_range(image: Tensor) -> Tensor:
    """Convert uint8 images to float32 in [0, 1]."""
    if image.device.type != "cpu":
        return image.float().div_(255)
    # glibc seldom finds room for a batch in the freed memory of another whose address torch has aligned to 64 bytes
    return torch.from_numpy(np.empty(tuple(image.shape), np.float32)).copy_(image).div_(255)


def name_file(
    folder: str | Path | None, source: object, records: Sequence[Record], frame: Frame, channels: int
) -> Path | None:
    """Name the file of decoded images in `folder` by a hash of their paths, sizes, modification times and settings.

    None if there is no folder, or images are not separate files.
    """
    if folder is None:
        return None
    settings = FORMAT, PIL.__version__, f"{type(source).__module__}.{type(source).__qualname__}", vars(frame), channels
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=12)
    try:
        for record in records:
            for path in [path for path in (record.path, record.mask) if path is not None]:
                stat = os.stat(path)
                identity = os.path.abspath(path), stat.st_size, stat.st_mtime_ns
                digest.update(repr(identity).encode(errors="surrogateescape"))
    except OSError:
        return None
    return Path(folder).expanduser() / f"images-{digest.hexdigest()}.bin"


def open_or_write(
    path: Path, count: int, shape: Shape, masked: bool, fill: Callable[[Decoded], list[str | None]]
) -> tuple[Decoded, list[str | None]]:
    """Map a file of decoded images, see `Decoded`; the first process writes it while the others wait.

    `fill` decodes all images into the file. Its result is returned too: for each image, the reason why it is
    unreadable, or None.

    Raises:
        UserError: the folder cannot be written to, the disk is full, or the file is damaged.
    """
    try:
        with hold_lock(path.with_suffix(".locked")):
            if not path.is_file():
                _write(path, count, shape, masked, fill)
        store = np.memmap(path, np.uint8, "c")  # copy-on-write, and nothing is written to it
    except OSError as error:
        raise UserError(
            f"decoded images cannot be kept in {path.parent} ({error}): set cache_dir to another folder, or cache to "
            "memory"
        ) from error
    try:
        decoded = Decoded(count, shape, masked, store)
        return decoded, json.loads(store[decoded.nbytes :].tobytes())
    except (RuntimeError, ValueError) as error:  # the file is too short, or does not end with JSON
        raise damage(path) from error


def damage(path: Path) -> UserError:
    """Return the error for a file whose checksums are wrong."""
    return UserError(f"the decoded images in {path} are damaged: remove the file to decode them again")


def _write(path: Path, count: int, shape: Shape, masked: bool, fill: Callable[[Decoded], list[str | None]]) -> None:
    part, length = path.with_suffix(f".{os.getpid()}.part"), count * (24 + math.prod(shape[1:]) * (shape[0] + masked))
    try:
        with part.open("w+b") as file:
            reserve(file, length)
        decoded = Decoded(count, shape, masked, np.memmap(part, np.uint8, "r+"))
        messages = fill(decoded)
        for i in range(count):
            decoded.checks[i] = decoded.checksum(i)
        with part.open("r+b") as file:
            file.seek(length)
            file.write(json.dumps(messages).encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
