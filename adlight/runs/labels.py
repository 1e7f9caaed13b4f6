"""The labels kept beside a run, which grow with every correction.

<run>/labels/
    labels.csv               one row per image: path, label, mask, category, source, added
    images/<hash>.<suffix>   the images themselves, by what is in them
    masks/<hash>.png         the masks, by their images
"""

import csv
import hashlib
import io
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from adlight.runs.files import hold_lock, read_if_exists, write_atomically
from adlight.runs.tables import to_csv
from adlight.types import Record, UserError

_FOLDER, _TABLE, _IMAGES, _MASKS, _LOCK = "labels", "labels.csv", "images", "masks", ".lock"
COLUMNS = ("path", "label", "mask", "category", "source", "added")  # the first and third relative to the folder


class LabelFolder:
    """A run's labels, which need not exist yet; it prints as its path.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: str | Path) -> None:
        self.path = Path(run) / _FOLDER

    def __str__(self) -> str:
        return str(self.path)

    def add(self, records: Iterable[Record], sources: Sequence[str] | None = None) -> tuple[int, int]:
        """Copy labelled images and their masks, and note them; the last label of an image counts.

        Args:
            records: `path`, `label` (0 normal, 1 defect), `mask` or None, `category` or nothing.
            sources: what to note of where each came from; None: its path.

        Returns:
            How many images are new, and how many have another label, mask or category than before.

        Raises:
            UserError: the table there is damaged.
        """
        records = list(records)
        with hold_lock(self.path / _LOCK):
            rows = {_key(row): row for row in self._rows()}
            keys = [_hash(record.path) for record in records]
            before = {key: self._state(rows[key]) for key in keys if key in rows}
            for i, (key, record) in enumerate(zip(keys, records, strict=True)):
                source = sources[i] if sources else str(Path(record.path).absolute())
                rows[key] = self._keep(key, record, source, rows.get(key))
            cells = ([row[name] for name in COLUMNS] for row in rows.values())
            write_atomically(self.path / _TABLE, to_csv(COLUMNS, cells))
        changed = sum(self._state(rows[key]) != state for key, state in before.items())
        return len(set(keys) - before.keys()), changed

    def read(self) -> list[Record]:
        """Read all labels that are kept, in the order in which they came.

        Raises:
            UserError: the table is damaged.
        """
        return [self._record(row) for row in self._rows()]

    def find(self, image: str | Path) -> Record | None:
        """Read the label of an image, known by what is in its file; None: it has none.

        Raises:
            UserError: the table is damaged.
        """
        key = _hash(image)
        return next((self._record(row) for row in self._rows() if _key(row) == key), None)

    def count_among(self, paths: Iterable[str]) -> int:
        """Count the labelled images that are among some files, by where they came from or what is in them."""
        rows, files, alike = self._rows(), [Path(path).absolute() for path in paths], set[str]()
        sizes = {(self.path / row["path"]).stat().st_size for row in rows}
        for file in files if rows else ():
            with suppress(OSError):  # the test's images may lie elsewhere now
                alike |= {_hash(file)} if file.stat().st_size in sizes else set()
        places = set(map(str, files))
        return sum(row["source"] in places or _key(row) in alike for row in rows)

    def _record(self, row: dict[str, str]) -> Record:
        mask, label = str(self.path / row["mask"]) if row["mask"] else None, int(row["label"])
        return Record(str(self.path / row["path"]), row["category"], "defect" if label else "good", label, mask)

    def _keep(self, key: str, record: Record, source: str, known: dict[str, str] | None) -> dict[str, str]:
        image, mask = known["path"] if known else f"{_IMAGES}/{key}{_suffix(record.path)}", ""
        if not (self.path / image).exists():
            write_atomically(self.path / image, Path(record.path).read_bytes())
        if record.mask is not None:
            mask = f"{_MASKS}/{key}{_suffix(record.mask)}"
            write_atomically(self.path / mask, Path(record.mask).read_bytes())
        added = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        return dict(zip(COLUMNS, (image, str(record.label), mask, record.category, source, added), strict=True))

    def _state(self, row: dict[str, str]) -> tuple[str, str, str]:
        mask = self.path / row["mask"]
        return row["label"], row["category"], _hash(mask) if row["mask"] and mask.exists() else ""

    def _rows(self) -> list[dict[str, str]]:
        text = read_if_exists(self.path / _TABLE)
        rows = list(csv.DictReader(io.StringIO(text or "", newline="")))
        for row in rows:
            if not set(COLUMNS) <= row.keys() or None in row.values() or row["label"] not in ("0", "1"):
                raise UserError(f"{self.path / _TABLE} is damaged: its columns are {', '.join(COLUMNS)}, labels 0 or 1")
        return rows


def _key(row: dict[str, str]) -> str:
    return Path(row["path"]).stem


def _suffix(path: str) -> str:
    return Path(path).suffix.lower()


def _hash(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:20]
