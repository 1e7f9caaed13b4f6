"""Arrays of the size of an image, in memory or, if large, in temporary files, and the bands in which they are read."""

import math
import os
import tempfile
from collections.abc import Iterator
from typing import IO

import numpy as np
from numpy.typing import DTypeLike

from adlight.types import UserError

LARGEST = 2**24  # largest number of bytes of an array in memory
BAND = 2**18  # number of pixels of a band


def allocate(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Allocate an array of zeros; a large array is mapped to a temporary file, so that the OS can write its pages back.

    The file has no name, and is removed with the array.

    Raises:
        UserError: the folder of temporary files is full.
    """
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    if nbytes <= LARGEST:
        return np.zeros(shape, dtype)
    try:
        with tempfile.TemporaryFile() as file:
            reserve(file, nbytes)
            return np.asarray(np.memmap(file, dtype, "r+", shape=shape))
    except OSError as error:
        raise UserError(
            f"{nbytes / 1e9:.1f} GB for a large image do not fit into {tempfile.gettempdir()} ({error}): set TMPDIR to "
            "a folder with more space"
        ) from error


def reserve(file: IO[bytes], nbytes: int) -> None:
    """Set a file's length before it is mapped, and reserve the space: a disk that fills up would kill the process."""
    if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
        os.posix_fallocate(file.fileno(), 0, max(1, nbytes))
    else:
        file.truncate(max(1, nbytes))


def bands(shape: tuple[int, ...], least: int = 1) -> Iterator[slice]:
    """Divide the rows of an array of `shape` (H, W) into bands of about `BAND` pixels, and of at least `least` rows."""
    height, width = shape
    rows = max(least, BAND // max(width, 1))
    return (slice(top, min(top + rows, height)) for top in range(0, height, rows))
