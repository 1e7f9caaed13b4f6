"""Folders of predictions for new images, which are written one by one, so that an interrupted command can resume.

<run>/predictions/<time>/
    predictions.csv       one row per image; its presence marks a finished command
    predictions.jsonl     the same as JSON, one line per image
    regions.json          images and their regions in COCO's detection format
    unreadable.csv        files that could not be read, if there are any
    predictions.part      while the command runs: all of the above as a line of JSON per image
    parts/                with engine=ray: the same in Parquet files, which are kept
"""

import csv
import datetime
import json
import re
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import IO, Any

from adlight.runs.files import ENCODING, open_whole
from adlight.runs.hydra_folder import HydraFolder
from adlight.runs.subfolders import PartFolder
from adlight.runs.tables import COLUMNS, prediction_cells
from adlight.runs.weights import hash_file
from adlight.types import UserError

_FOLDER, _TABLE, _LINES, _REGIONS = "predictions", "predictions.csv", "predictions.jsonl", "regions.json"
_UNREADABLE, _JOURNAL, _PARTS = "unreadable.csv", "predictions.part", "parts"
_DATE = re.compile(r"(\d{4})(\d\d)(\d\d)-\d{6}")  # the beginning of a folder's name
CATEGORY = {"id": 1, "name": "anomaly"}  # COCO's

Entry = dict[str, Any]  # for an image: `path`, and either `error` or its prediction


class PredictionFolder(HydraFolder):
    """A folder of predictions; entries are written as soon as they are made.

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
    def is_finished(self) -> bool:
        """Whether a command has finished here."""
        return self.table.exists()

    @property
    def can_resume(self) -> bool:
        """Whether a command has begun here but not finished."""
        return self.is_run and self._journal.exists()

    @property
    def last_change(self) -> float:
        """Time at which the last entry was written, in seconds."""
        places = (self._journal, self.parts.path)
        return max(place.stat().st_mtime for place in places if place.exists())

    def begin(self, weights: Path, *, resume: bool) -> int:
        """Begin, or `resume`; raise a UserError if the weights have changed. -> the number of existing entries."""
        header = json.dumps({"weights": hash_file(weights)}).encode() + b"\n"
        if not resume:
            self.table.unlink(missing_ok=True)
            self.parts.clear()
            self._journal.write_bytes(header)
            return 0
        with self._journal.open("r+b") as file:
            if (first := file.readline()) != header and first.endswith(b"\n"):
                raise UserError(f"{weights} has changed since {self} was begun: predict again, without resume")
            kept = len(header) + sum(len(line) for line in file if line.endswith(b"\n"))  # the last may be incomplete
            file.truncate(kept)
            file.seek(0)
            file.write(header)
        return self.count()

    def count(self) -> int:
        """Count the entries."""
        with self._journal.open("rb") as file:
            return sum(1 for _ in file) - 1 + self.parts.count()

    def entries(self) -> Iterator[Entry]:
        """Read the entries, one at a time."""
        with self._journal.open(**ENCODING) as file:
            next(file)
            yield from map(json.loads, file)
        yield from self.parts.entries()

    def remaining(self, paths: Iterator[Path]) -> Iterator[Path]:
        """Skip the images that have an entry; raise a UserError if the images or their order have changed."""
        for entry in self.entries():
            if (path := str(next(paths, None))) != entry["path"]:
                raise UserError(f"the images have changed ({path}, not {entry['path']}): predict again, without resume")
        return paths

    def add(self, entries: Iterable[Entry]) -> None:
        """Append entries."""
        with self._journal.open("a", **ENCODING) as file:
            file.write("".join(json.dumps(entry) + "\n" for entry in entries))

    def finish(self) -> None:
        """Write the tables from the entries; the last one, by its presence, marks a finished command."""
        with open_whole(self.path / _LINES) as file:
            for entry in self._predicted():
                print(json.dumps({name: entry[name] for name in ("path", *COLUMNS)}), file=file)
        with open_whole(self.path / _REGIONS) as file:
            file.write(f'{{"categories": {json.dumps([CATEGORY])},\n"images": [')
            _write_list(file, (_coco_image(*numbered) for numbered in enumerate(self._predicted(), 1)))
            file.write('],\n"annotations": [')
            _write_list(file, self._annotations())
            file.write("]}\n")
        failed = ((entry["path"], entry["error"]) for entry in self.entries() if "error" in entry)
        if (first := next(failed, None)) is not None:
            with open_whole(self.unreadable) as file:
                csv.writer(file).writerows([("path", "error"), first])
                csv.writer(file).writerows(failed)
        with open_whole(self.table) as file:
            csv.writer(file).writerow(("path", *COLUMNS))
            csv.writer(file).writerows((entry["path"], *prediction_cells(entry)) for entry in self._predicted())
        self._journal.unlink()

    def _predicted(self) -> Iterator[Entry]:
        return (entry for entry in self.entries() if "error" not in entry)

    def _annotations(self) -> Iterator[Entry]:
        numbers = count(1)
        for image, entry in enumerate(self._predicted(), 1):
            for region in entry["regions"]:
                yield {"id": next(numbers), "image_id": image, "category_id": CATEGORY["id"], **region, "iscrowd": 0}


def _coco_image(number: int, entry: Entry) -> Entry:
    values = {name: entry[name] for name in ("width", "height", "score", "threshold", "anomalous")}
    return {"id": number, "file_name": entry["path"], **values}


def _write_list(file: IO[str], items: Iterable[Entry]) -> None:
    for i, item in enumerate(items):
        file.write((",\n" if i else "\n") + json.dumps(item))


def prediction_tables(run: Path) -> list[tuple[datetime.date, Path]]:
    """List the finished tables of a run's predictions with their dates, from the folder's name or else the file."""
    tables = []
    for path in sorted((run / _FOLDER).glob(f"*/{_TABLE}")):
        if match := _DATE.match(path.parent.name):
            tables.append((datetime.date(*map(int, match.groups())), path))
        else:
            tables.append((datetime.date.fromtimestamp(path.stat().st_mtime), path))
    return sorted(tables)


def run_of(place: Path) -> Path:
    """Return the run that a folder of predictions belongs to; any other place is returned unchanged."""
    return place.parent if place.name == _FOLDER and place.is_dir() else place
