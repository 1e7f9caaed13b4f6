"""Folders inside a run: the gallery, which the report shows, groups of anomalies, and predictions in parts.

gallery/<row>.webp, <row>.map.webp, <row>.mask.webp: image, coloured map and true mask of a row of the predictions.

groups/<time>/
    groups.csv      one row per region: path, category, defect, box (pixels of the resized image; of tiled runs, of the
                    original), group
    groups.json     method, numbers of groups and regions, silhouette, agreement with the defect types
    group-<n>.png   pictures of a group's regions; group-others.png of those in no group

predictions/<time>/parts/<number>.parquet: a row per image with the columns of `predictions.csv`, its size, its regions,
or an error.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from adlight.runs.files import Folder, read_if_exists, write_atomically, write_json
from adlight.runs.tables import to_csv
from adlight.types import UserError

if TYPE_CHECKING:  # pyarrow is an extra
    import pyarrow
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


class PartFolder(Folder):
    """Predictions in parts, which several processes write at once; a file exists only once its part is complete."""

    def clear(self) -> None:
        """Delete all parts."""
        for number in self._numbers():
            self._file(number).unlink()

    def write(self, number: int, entries: Iterable[dict[str, Any]]) -> None:
        """Write a part."""
        import pyarrow
        from pyarrow import parquet

        buffer = pyarrow.BufferOutputStream()
        parquet.write_table(pyarrow.Table.from_pylist(list(entries), _schema()), buffer)
        write_atomically(self._file(number), buffer.getvalue().to_pybytes())

    def entries(self) -> Iterator[dict[str, Any]]:
        """Read the entries of all parts, in order."""
        for number in self._numbers():
            for row in self._open(number).read().to_pylist():
                error = row.pop("error")
                yield row if error is None else {"path": row["path"], "error": error}

    def count(self) -> int:
        """Count the entries."""
        return sum(self._open(number).metadata.num_rows for number in self._numbers())

    def remaining(self, paths: Iterator[Path], size: int) -> Iterator[tuple[int, list[str]]]:
        """Yield number and images of each missing part of `size` images; raise a UserError if images have changed."""
        for number in count():
            images = [str(path) for path in islice(paths, size)]
            written = self._open(number).read(["path"])["path"].to_pylist() if self._file(number).exists() else None
            if written not in (None, images) or (not images and any(other >= number for other in self._numbers())):
                raise UserError(f"the images have changed since {self.path} was begun: predict again, without resume")
            if not images:
                return
            for path in images:
                _check_utf8(path)
            if written is None:
                yield number, images

    def _file(self, number: int) -> Path:
        return self.path / f"{number:06}.parquet"

    def _open(self, number: int) -> "pyarrow.parquet.ParquetFile":
        from pyarrow import parquet

        return parquet.ParquetFile(self._file(number))

    def _numbers(self) -> list[int]:
        return sorted(int(path.stem) for path in self.path.glob("*.parquet"))


def _check_utf8(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{path!r} is not UTF-8, which Parquet needs: rename it, or leave out engine=ray") from error


def _schema() -> "pyarrow.Schema":
    import pyarrow as pa

    integers = pa.list_(pa.int64())
    pixels = pa.struct([("size", integers), ("counts", integers)])
    region = pa.struct([("bbox", integers), ("area", pa.int64()), ("score", pa.float64()), ("segmentation", pixels)])
    words, numbers = ("path", "threshold_source", "error"), ("score", "threshold", "pixel_threshold", "area")
    columns = {
        **dict.fromkeys(words, pa.string()),
        **dict.fromkeys(numbers, pa.float64()),
        **{"anomalous": pa.bool_(), "width": pa.int64(), "height": pa.int64()},
        **{"boxes": pa.list_(integers), "regions": pa.list_(region)},
    }
    return pa.schema(columns)
