"""Folders inside a run: the gallery, which the report shows, and groups of anomalies.

gallery/<row>.webp, <row>.map.webp, <row>.mask.webp: image, coloured map and true mask of a row of the predictions.

groups/<time>/
    groups.csv      one row per region: path, category, defect, box (pixels of the resized image; of tiled runs, of the
                    original), group
    groups.json     method, numbers of groups and regions, silhouette, agreement with the defect types
    group-<n>.png   pictures of a group's regions; group-others.png of those in no group
"""

import csv
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from adlight.runs.files import Folder, read_if_exists, write_atomically, write_json
from adlight.runs.tables import to_csv

if TYPE_CHECKING:
    from PIL import Image

_IMAGE, _MAP, _MASK = ".webp", ".map.webp", ".mask.webp"
_FOLDER, _TABLE, _SUMMARY = "groups", "groups.csv", "groups.json"
COLUMNS = ("path", "category", "defect", "box", "group")


class Pictures(NamedTuple):
    """The encoded pictures of one test image."""

    image: bytes
    map: bytes  # anomaly map in colours
    mask: bytes | None  # true mask, if there is one


class GalleryFolder(Folder):
    """The gallery of a run."""

    def write(self, pictures: Iterable[tuple[int, Pictures]]) -> None:
        """Write pictures, each with its row in the table of predictions, and delete the pictures of earlier tests."""
        for path in self.path.glob(f"*{_IMAGE}"):
            path.unlink()
        for row, contents in pictures:
            for content, suffix in zip(contents, (_IMAGE, _MAP, _MASK), strict=True):
                if content is not None:
                    write_atomically(self.path / f"{row}{suffix}", content)

    def rows(self) -> dict[int, bool]:
        """List the rows that have pictures, in order, and whether they have a mask."""
        matches = (re.fullmatch(r"(\d+)\.webp", path.name) for path in self.path.glob(f"*{_IMAGE}"))
        rows = sorted(int(match[1]) for match in matches if match)
        return {row: (self.path / f"{row}{_MASK}").exists() for row in rows}

    def image_path(self, row: int) -> Path:
        """Return the path of a row's image."""
        return self.path / f"{row}{_IMAGE}"


class GroupFolder(Folder):
    """The folder of one grouping."""

    @classmethod
    def latest(cls, run: Path) -> "GroupFolder | None":
        """Find a run's newest grouping; None if there is none."""
        folders = sorted(path.parent for path in (run / _FOLDER).glob(f"*/{_SUMMARY}"))
        return cls(folders[-1]) if folders else None

    def write(self, rows: Iterable[Sequence[Any]], sheets: dict[int, "Image.Image"], summary: dict[str, Any]) -> None:
        """Write the rows, with the columns `COLUMNS`, a sheet of pictures per group, and the summary."""
        write_atomically(self.path / _TABLE, to_csv(COLUMNS, rows))
        for group, sheet in sheets.items():
            sheet.save(self.sheet(group))
        write_json(self.path / _SUMMARY, summary)

    def sheet(self, group: int) -> Path:
        """Return the path of a group's pictures; a negative number stands for regions in no group."""
        return self.path / f"group-{'others' if group < 0 else group}.png"

    def read(self) -> tuple[list[dict[str, str]], dict[str, Any]]:
        """Read the rows and the summary."""
        with (self.path / _TABLE).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return list(csv.DictReader(file)), json.loads(read_if_exists(self.path / _SUMMARY) or "{}")
