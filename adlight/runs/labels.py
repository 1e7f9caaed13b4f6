"""The labels kept beside a run, which grow with every correction.

<run>/labels/
    labels.csv               one row per image: path, label, mask, category, source, added
    images/<hash>.<suffix>   the images themselves, by what is in them
    masks/<hash>.png         the masks, by their images
"""

import csv
import hashlib
import io
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from adlight.runs.files import hold_lock, read_if_exists, write_atomically
from adlight.runs.tables import to_csv
from adlight.types import Record, UserError

_FOLDER, _TABLE, _IMAGES, _MASKS, _LOCK = "labels", "labels.csv", "images", "masks", ".lock"
COLUMNS = ("path", "label", "mask", "category", "source", "added")  # the first two relative to the folder


class LabelFolder:
    """A run's labels, which need not exist yet; it prints as its path.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: str | Path) -> None:
        self.path = Path(run) / _FOLDER

    def __str__(self) -> str:
        return str(self.path)

    def add(self, records: Iterable[Record]) -> tuple[int, int]:
        """Copy labelled images and their masks, and note them; the last label of an image counts.

        Args:
            records: `path`, `label` (0 normal, 1 defect), `mask` or None, `category` or nothing.

        Returns:
            How many images are new, and how many have another label or mask than before.

        Raises:
            UserError: the table there is damaged.
        """
        with hold_lock(self._make() / _LOCK):
            rows = {row["path"]: row for row in self._rows()}
            before = {key: (row["label"], row["mask"]) for key, row in rows.items()}
            for record in records:
                row = self._keep(record)
                rows[row["path"]] = row
            cells = ([row[name] for name in COLUMNS] for row in rows.values())
            write_atomically(self.path / _TABLE, to_csv(COLUMNS, cells))
        after = {key: (row["label"], row["mask"]) for key, row in rows.items()}
        return len(after.keys() - before.keys()), sum(after[key] != value for key, value in before.items())

    def read(self) -> list[Record]:
        """Read all labels that are kept, in the order in which they came.

        Raises:
            UserError: the table is damaged.
        """
        found = []
        for row in self._rows():
            mask, label = str(self.path / row["mask"]) if row["mask"] else None, int(row["label"])
            path = str(self.path / row["path"])
            found.append(Record(path, row["category"], "defect" if label else "good", label, mask))
        return found

    def sources(self) -> list[str]:
        """Give the files that the images were copied from."""
        return [row["source"] for row in self._rows()]

    def _make(self) -> Path:
        self.path.mkdir(parents=True, exist_ok=True)
        return self.path

    def _keep(self, record: Record) -> dict[str, str]:
        name = _hash(record.path)
        image = self._copy(record.path, f"{_IMAGES}/{name}{_suffix(record.path)}")
        mask = "" if record.mask is None else self._copy(record.mask, f"{_MASKS}/{name}{_suffix(record.mask)}")
        added = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        values = (image, str(record.label), mask, record.category, str(Path(record.path).absolute()), added)
        return dict(zip(COLUMNS, values, strict=True))

    def _copy(self, source: str, name: str) -> str:
        target = self.path / name
        if not target.exists() or not target.samefile(source):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        return name

    def _rows(self) -> list[dict[str, str]]:
        text = read_if_exists(self.path / _TABLE)
        rows = list(csv.DictReader(io.StringIO(text or "", newline="")))
        for row in rows:
            if not set(COLUMNS) <= row.keys() or None in row.values() or row["label"] not in ("0", "1"):
                raise UserError(f"{self.path / _TABLE} is damaged: its columns are {', '.join(COLUMNS)}, labels 0 or 1")
        return rows


def _suffix(path: str) -> str:
    return Path(path).suffix.lower()


def _hash(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:20]
