"""Labels stored in a run's folder, and detectors that have learned from them.

<run>/labels/
    labels.csv               one row per image: path, label, mask, category, source, added
    images/<hash>.<suffix>   the images, named by the hash of their content
    masks/<hash>.png         the masks, named by the hash of their image
<run>/learned/<time>/        a learned detector, which is a run itself
"""

import csv
import io
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from adlight.locks import hold_lock
from adlight.runs.config import drop_objective
from adlight.runs.files import Folder, read_if_exists, write_atomically
from adlight.runs.folder import RunFolder
from adlight.runs.tables import to_csv
from adlight.runs.weights import hash_file, write_checkpoint
from adlight.types import Record, UserError

_FOLDER, _TABLE, _IMAGES, _MASKS, _LOCK = "labels", "labels.csv", "images", "masks", ".lock"
COLUMNS = ("path", "label", "mask", "category", "source", "added")  # path and mask are relative to the folder
MODULE = "adlight.learning.module.LearnedModule"
CALIBRATION = "adlight.learning.calibration.LabelledCalibration"


class LabelFolder(Folder):
    """A run's labels.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: str | Path) -> None:
        super().__init__(Path(run) / _FOLDER)

    def add(self, records: Iterable[Record], sources: Sequence[str] | None = None) -> tuple[int, int]:
        """Copy labelled images and their masks into the folder; an image's last label replaces earlier ones.

        Args:
            records: `path`, `label` (0 normal, 1 anomalous), `mask` or None, `category` or an empty text.
            sources: where each image came from; None for its path.

        Returns:
            The number of new images, and of images whose label, mask or category has changed.

        Raises:
            UserError: the existing table is damaged.
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
        """Read all labels, in the order in which they were added; raise a UserError if the table is damaged."""
        return [self._record(row) for row in self._rows()]

    def find(self, image: str | Path) -> Record | None:
        """Find the label of an image by the content of its file; None if the image has no label."""
        key = _hash(image)
        return next((self._record(row) for row in self._rows() if _key(row) == key), None)

    def count_among(self, paths: Iterable[str]) -> int:
        """Count the labelled images that are among the given files, by source or by content."""
        rows, files, hashes = self._rows(), [Path(path).absolute() for path in paths], set[str]()
        sizes = {(self.path / row["path"]).stat().st_size for row in rows}
        for file in files if rows else ():
            with suppress(OSError):  # the test images may have been moved
                if file.stat().st_size in sizes:
                    hashes.add(_hash(file))
        sources = set(map(str, files))
        return sum(row["source"] in sources or _key(row) in hashes for row in rows)

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
    return hash_file(Path(path))[:20]


def learned_config(config: DictConfig, **settings: Any) -> DictConfig:
    """Turn a run's config into the config of a learned detector; `settings` are arguments of `LearnedModule`."""
    config = config.copy()
    OmegaConf.set_struct(config, False)
    drop_objective(config)
    detector = OmegaConf.to_container(config.model, resolve=True)  # relative interpolations would break when moved
    config.model = {"_target_": MODULE, "detector": detector, **settings}
    config.calibration._target_ = CALIBRATION
    config.calibration.asked = None
    config.ckpt = "best"
    return config


def write_learned(
    folder: RunFolder, run: RunFolder, config: DictConfig, state: dict[str, Any], metadata: dict[str, Any]
) -> None:
    """Write a detector that was learned from a run; the config, which makes the folder a run, is written last."""
    write_checkpoint(folder.best_checkpoint, {"state_dict": state})
    folder.begin(metadata)
    folder.write_composed(config, run.choices())


def source_run(run: RunFolder) -> RunFolder:
    """Find the run whose labels a run learns from: itself, the run of an evaluation, or the run it was learned from.

    Raises:
        UserError: this is not a run, or a learned detector outside the run that it was learned from.
    """
    if "run" in (config := run.config()):
        run = RunFolder(run.evaluated(config).path)
    if config.model.get("_target_") != MODULE:
        return run
    source = RunFolder(run.path.resolve().parents[1])
    if not source.is_run:
        raise UserError(f"{run} has learned from another run's labels but is not in that run's folder: name that run")
    return source
