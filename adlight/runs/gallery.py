"""The gallery of a run: small pictures of test images and their anomaly maps, which the report shows.

gallery/<row>.webp, <row>.map.webp, <row>.mask.webp: image, coloured map and true mask of a row of the predictions.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from adlight.runs.files import write_atomically

_SUFFIX = ".webp"
_IMAGE, _MAP, _MASK = _SUFFIX, f".map{_SUFFIX}", f".mask{_SUFFIX}"


class Pictures(NamedTuple):
    """The encoded pictures of one test image."""

    image: bytes
    map: bytes  # anomaly map in colours
    mask: bytes | None  # true mask, if there is one


class GalleryFolder:
    """The gallery of a run, which need not exist; it prints as its path."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    def write(self, pictures: Iterable[tuple[int, Pictures]]) -> None:
        """Write pictures by their row in the table of predictions, and delete those of an earlier test."""
        for path in self.path.glob(f"*{_SUFFIX}"):
            path.unlink()
        for row, contents in pictures:
            for content, suffix in zip(contents, (_IMAGE, _MAP, _MASK), strict=True):
                if content is not None:
                    write_atomically(self.path / f"{row}{suffix}", content)

    def rows(self) -> dict[int, bool]:
        """List the rows that have pictures, in order, with whether there is a mask."""
        matches = (re.fullmatch(r"(\d+)\.webp", path.name) for path in self.path.glob(f"*{_SUFFIX}"))
        rows = sorted(int(match[1]) for match in matches if match)
        return {row: (self.path / f"{row}{_MASK}").exists() for row in rows}

    def image_path(self, row: int) -> Path:
        """Return the path of a row's image."""
        return self.path / f"{row}{_IMAGE}"
