"""The gallery of a run: small pictures of test images and their anomaly maps, for the report to show.

gallery/<row>.webp, <row>.map.webp, <row>.mask.webp: image, coloured map and true mask of that row of the predictions.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from adlight.runs.files import write_atomically

_SUFFIX = ".webp"
_IMAGE, _MAP, _MASK = _SUFFIX, f".map{_SUFFIX}", f".mask{_SUFFIX}"


class Pictures(NamedTuple):
    """What the gallery holds of one test image, as encoded files.

    Attributes:
        image: the image.
        map: its anomaly map in colours.
        mask: its true mask; None where there is none.
    """

    image: bytes
    map: bytes
    mask: bytes | None


class GalleryFolder:
    """A run's gallery, which need not exist; it prints as its path."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    def write(self, pictures: Iterable[tuple[int, Pictures]]) -> None:
        """Write pictures by their row in the table of predictions, in place of an earlier test's."""
        for path in self.path.glob(f"*{_SUFFIX}"):
            path.unlink()
        for row, one in pictures:
            for content, suffix in zip(one, (_IMAGE, _MAP, _MASK), strict=True):
                if content is not None:
                    write_atomically(self.path / f"{row}{suffix}", content)

    def rows(self) -> dict[int, bool]:
        """List the rows that have pictures, in their order, with whether there is a mask."""
        found = (re.fullmatch(r"(\d+)\.webp", path.name) for path in self.path.glob(f"*{_SUFFIX}"))
        rows = sorted(int(match[1]) for match in found if match)
        return {row: (self.path / f"{row}{_MASK}").exists() for row in rows}

    def image_path(self, row: int) -> Path:
        """Name the file of a row's image."""
        return self.path / f"{row}{_IMAGE}"
