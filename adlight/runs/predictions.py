"""Folders of predictions for new images, written image by image, so that an interrupted command can go on.

<run>/predictions/<time>/
    predictions.csv       one row per image; its presence marks a finished command
    predictions.jsonl     the same as JSON, a line each
    regions.json          images and their regions in COCO's detection format
    unreadable.csv        files that could not be read, where there are some
    predictions.part      while the command runs: all of that, a line of JSON per image
    parts/                or, with engine=ray, Parquet files of it, which stay
"""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from adlight.runs.hydra_folder import HydraFolder
from adlight.runs.parts import PartFolder
from adlight.runs.tables import COLUMNS
from adlight.runs.verification import hash_file
from adlight.types import UserError

_TABLE, _LINES, _REGIONS, _UNREADABLE = "predictions.csv", "predictions.jsonl", "regions.json", "unreadable.csv"
_JOURNAL, _PARTS = "predictions.part", "parts"
_ENCODING: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}  # names keep their bytes
CATEGORY = {"id": 1, "name": "anomaly"}  # of COCO

Entry = dict[str, Any]  # of one image: `path`, and `error` or what is predicted


class PredictionFolder(HydraFolder):
    """A folder of predictions; an image's entry is kept from the moment that it is made.

    Attributes:
        table: the finished table.
        unreadable: the list of files that could not be read.
        parts: entries that several processes write.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.table, self.unreadable = self.path / _TABLE, self.path / _UNREADABLE
        self._journal, self.parts = self.path / _JOURNAL, PartFolder(self.path / _PARTS)

    @property
    def can_resume(self) -> bool:
        """Whether a command has begun here that did not end."""
        return self.is_run and self._journal.exists()

    @property
    def last_change(self) -> float:
        """When the last entry was written, in seconds."""
        places = (self._journal, self.parts.path)
        return max(place.stat().st_mtime for place in places if place.exists())

    def begin(self, weights: Path, *, resume: bool) -> int:
        """Keep the entries of an interrupted command, or begin without any. -> how many are kept.

        Args:
            weights: the file that the detector was loaded from.
            resume: whether to keep them.

        Raises:
            UserError: they were made by other weights.
        """
        header = json.dumps({"weights": hash_file(weights)}).encode() + b"\n"
        if not resume:
            self.table.unlink(missing_ok=True)
            self.parts.clear()
            self._journal.write_bytes(header)
            return 0
        with self._journal.open("r+b") as file:
            if (first := file.readline()) != header and first.endswith(b"\n"):
                raise UserError(f"{weights} has changed since {self} was begun: predict anew, without resume")
            kept = len(header) + sum(len(line) for line in file if line.endswith(b"\n"))  # the last one may be torn
            file.truncate(kept)
            file.seek(0)
            file.write(header)
        return self.count()

    def count(self) -> int:
        """Count the entries."""
        with self._journal.open("rb") as file:
            return sum(1 for _ in file) - 1 + self.parts.count()

    def entries(self) -> Iterator[Entry]:
        """Read the entries, one after the other."""
        with self._journal.open(**_ENCODING) as file:
            next(file)
            yield from map(json.loads, file)
        yield from self.parts.entries()

    def remaining(self, paths: Iterator[Path]) -> Iterator[Path]:
        """Leave out the images that have an entry: they come in the same order again.

        Raises:
            UserError: one of them does not come where it did.
        """
        for entry in self.entries():
            if (path := str(next(paths, None))) != entry["path"]:
                raise UserError(
                    f"the images have changed: {path} comes where {entry['path']} did. Predict anew, without resume"
                )
        return paths

    def add(self, entries: Iterable[Entry]) -> None:
        """Keep the entries of some images."""
        with self._journal.open("a", **_ENCODING) as file:
            file.write("".join(json.dumps(one) + "\n" for one in entries))

    def finish(self) -> None:
        """Write the tables from the entries, the one that marks the end last."""
        with _whole(self.path / _LINES) as file:
            for one in self._predicted():
                print(json.dumps({name: one[name] for name in ("path", *COLUMNS)}), file=file)
        with _whole(self.path / _REGIONS) as file:
            file.write(f'{{"categories": {json.dumps([CATEGORY])},\n"images": [')
            _write_list(file, map(_coco_image, self._numbered()))
            file.write('],\n"annotations": [')
            _write_list(file, self._annotations())
            file.write("]}\n")
        failed = ((one["path"], one["error"]) for one in self.entries() if "error" in one)
        if (first := next(failed, None)) is not None:
            with _whole(self.unreadable) as file:
                csv.writer(file).writerows([("path", "error"), first])
                csv.writer(file).writerows(failed)
        with _whole(self.table) as file:
            csv.writer(file).writerow(("path", *COLUMNS))
            csv.writer(file).writerows(map(_cells, self._predicted()))
        self._journal.unlink()

    def _predicted(self) -> Iterator[Entry]:
        return (one for one in self.entries() if "error" not in one)

    def _numbered(self) -> Iterator[tuple[int, Entry]]:
        return enumerate(self._predicted(), 1)

    def _annotations(self) -> Iterator[Entry]:
        found = (({"image_id": i}, region) for i, one in self._numbered() for region in one["regions"])
        for number, (image, region) in enumerate(found, 1):
            yield {"id": number, **image, "category_id": CATEGORY["id"], **region, "iscrowd": 0}


def _coco_image(numbered: tuple[int, Entry]) -> Entry:
    number, one = numbered
    said = {name: one[name] for name in ("width", "height", "score", "threshold", "anomalous")}
    return {"id": number, "file_name": one["path"], **said}


def _cells(one: Mapping[str, Any]) -> tuple[Any, ...]:
    boxes = " ".join(",".join(map(str, box)) for box in one["boxes"])
    cells = {**one, "anomalous": int(one["anomalous"]), "boxes": boxes}
    return tuple(cells[name] for name in ("path", *COLUMNS))


def _write_list(file: IO[str], items: Iterable[Entry]) -> None:
    for i, one in enumerate(items):
        file.write((",\n" if i else "\n") + json.dumps(one))


@contextmanager
def _whole(path: Path) -> Iterator[IO[str]]:
    """Open a file that has its name only when it is whole."""
    partial = path.with_name(f".{path.name}.part")
    with partial.open("w", **_ENCODING) as file:
        yield file
    os.replace(partial, path)
