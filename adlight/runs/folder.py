"""Run folders: what is written into them and how they are read; no other module knows a file name in one.

runs/<name>/
    .hydra/                              the composed config, see hydra_folder.py
    run.json                             command, seed, commit, versions, machine
    checkpoints/best.ckpt, last.ckpt     tensors only
    checkpoints.sha256                   their hashes, see verification.py
    checkpoints/pretraining.ckpt         the last epoch of the stage before the detector, where there is one
    metrics.csv, pretraining.csv         curves of the detector and of the stage before it
    metrics.json                         final numbers (their presence marks a finished run)
    predictions.csv, defects.csv         one row per test image; one per defect type (calibration.csv: history.py)
    panels/*.png, samples/*.png          test images; what a GAN makes while it is trained
    gallery/*.webp                       small pictures of test images, see gallery.py
    wandb.json                           id and group at W&B, where it is used
    train.log, error.txt                 what the terminal showed; why the run failed, if it did
    job.json                             of a sweep's job: number and overrides
    .lock                                held by the process that works in the folder
"""

import json
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adlight.runs import tables
from adlight.runs.files import hold_lock, is_numbered, rank, read_if_exists, write_atomically
from adlight.runs.gallery import GalleryFolder
from adlight.runs.history import write_calibration
from adlight.runs.hydra_folder import HydraFolder
from adlight.types import Record, UserError

if TYPE_CHECKING:  # they take seconds: not for --help
    from pandas import DataFrame

    from adlight.detection.module import AnomalyModule

_RUN, _WANDB, _CHECKPOINTS = "run.json", "wandb.json", "checkpoints"
_PANELS, _GALLERY, _NEW_IMAGES = "panels", "gallery", "predictions"
_BEST, _LAST, _PRETRAINING = (f"{_CHECKPOINTS}/{name}.ckpt" for name in ("best", "last", "pretraining"))
_CURVE, _PRETRAINING_CURVE = "metrics.csv", "pretraining.csv"
_METRICS, _PREVIOUS = "metrics.json", "metrics.previous.json"
_PREDICTIONS, _DEFECTS = "predictions.csv", "defects.csv"
_JOB, _ERROR, _LOCK, _DATA_LOCK = "job.json", "error.txt", ".lock", ".data.lock"


class RunFolder(HydraFolder):
    """A run's folder, or the folder of an evaluation in it.

    Attributes:
        best_checkpoint: the weights of the best validation; this file and the next two need not exist.
        last_checkpoint, stage_checkpoint: the full state of the last epoch, and of the stage before the detector.
        predictions_path: the table with one row per test image.
        panels, predictions_folder: the folders of the panels, and of predictions for new images.
        gallery: the small pictures of test images.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.best_checkpoint, self.last_checkpoint = self.path / _BEST, self.path / _LAST
        self.stage_checkpoint, self.predictions_path = self.path / _PRETRAINING, self.path / _PREDICTIONS
        self.predictions_folder, self.panels = self.path / _NEW_IMAGES, self.path / _PANELS
        self.gallery = GalleryFolder(self.path / _GALLERY)

    @property
    def is_finished(self) -> bool:
        """Whether the run has been tested."""
        return (self.path / _METRICS).exists()

    @property
    def can_resume(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self.last_checkpoint.exists() or self.stage_checkpoint.exists()

    @property
    def last_change(self) -> float:
        """When the newest checkpoint to resume from was written, in seconds; 0 if there is none."""
        paths = self.last_checkpoint, self.stage_checkpoint
        return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)

    @property
    def has_results(self) -> bool:
        """Whether something that took time to compute lies in the folder."""
        return self.is_finished or (self.path / _CHECKPOINTS).exists()

    def checkpoint(self, which: str) -> Path:
        """Find a checkpoint by `best`, `last` or its path.

        Raises:
            UserError: there is no such file; the text says what there is.
        """
        folder = self.path / _CHECKPOINTS
        path = folder / f"{which}.ckpt" if which in ("best", "last") else Path(which)
        if not path.is_file():
            there = ", ".join(sorted(found.name for found in folder.glob("*.ckpt"))) or "none"
            raise UserError(f"checkpoint {path} does not exist (in {folder}: {there})")
        return path

    def begin(self, metadata: dict[str, Any]) -> None:
        """Write `run.json`. What an earlier part of the run ended with is set aside: it counts as unfinished again."""
        (self.path / _ERROR).unlink(missing_ok=True)
        if self.is_finished:
            os.replace(self.path / _METRICS, self.path / _PREVIOUS)
        self._write_json(_RUN, metadata)

    def metadata_text(self) -> str | None:
        """Read `run.json`, which differs whenever a run begins anew; None before it has begun."""
        return read_if_exists(self.path / _RUN)

    def write_results(self, module: "AnomalyModule", records: list[Record], metadata: dict[str, Any]) -> None:
        """Write the tables, then `metrics.json`, whose presence marks the run as finished: it has not failed."""
        assert module.results is not None
        rows = tables.prediction_rows(records, module.predictions)
        write_atomically(self.predictions_path, tables.to_csv(tables.PREDICTIONS, rows))
        write_calibration(self.path, module.calibration)
        write_atomically(self.path / _DEFECTS, tables.to_csv(tables.DEFECTS, tables.defect_rows(module.results)))
        self._write_json(_METRICS, module.results.as_dict() | module.calibration.as_dict() | metadata)
        (self.path / _ERROR).unlink(missing_ok=True)

    def read_results(self) -> dict[str, Any] | None:
        """Read `metrics.json`; None where the run is not finished.

        Raises:
            UserError: the file is damaged.
        """
        if (text := read_if_exists(self.path / _METRICS)) is None:
            return None
        try:
            content = json.loads(text)
            tables.check_results(content)
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            path = self.path / _METRICS
            raise UserError(f"{path} is damaged ({error}): test the run again with adlight.evaluate") from error
        return content

    def predictions(self) -> "DataFrame | None":
        """Read one row per test image, with the columns `tables.PREDICTIONS`; None where there is no such table.

        Raises:
            UserError: a column is missing, or something else stands where a number should.
        """
        return tables.read_predictions(self.predictions_path) if self.predictions_path.exists() else None

    @property
    def result_paths(self) -> list[Path]:
        """The files with a run's numbers."""
        return [self.path / name for name in (_METRICS, _PREDICTIONS, _DEFECTS)]

    @property
    def curve_paths(self) -> list[Path]:
        """The curves that there are, in the order of the training."""
        return [path for name in (_PRETRAINING_CURVE, _CURVE) if (path := self.path / name).is_file()]

    def panel_paths(self) -> list[Path]:
        """List the run's panels, one file per category."""
        return sorted(self.panels.glob("*.png"))

    def wandb_identity(self, fresh: dict[str, Any]) -> dict[str, Any]:
        """Name the run at W&B: `fresh` the first time, and the same again whenever it is resumed."""
        if not (self.path / _WANDB).exists():
            self._write_json(_WANDB, fresh)
        return json.loads((self.path / _WANDB).read_text())

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        write_atomically(self.path / name, json.dumps(content, indent=2) + "\n")

    def lock(self, wait: bool = True) -> AbstractContextManager[None]:
        """Hold the folder against other processes; of those of one run or job, the first holds it for all.

        A job waits for its turn: a sweep was started twice, or a search repeats a job. `wait=False` raises a UserError.
        """
        said, advice = f"another process works in {self}", "wait for its end, or choose another hydra.run.dir"
        refusal = "" if wait else f"{said}: {advice}"
        return hold_lock(self.path / _LOCK, f"{said}: waiting for it", refusal) if rank() == 0 else nullcontext()

    def data_lock(self) -> AbstractContextManager[None]:
        """Let the processes of a run prepare its data one after the other, before they know of each other."""
        return hold_lock(self.path / _DATA_LOCK) if is_numbered() else nullcontext()

    def write_job(self, number: int, overrides: list[str]) -> None:
        """Note a sweep's job, which is about to begin: it has not failed yet."""
        (self.path / _ERROR).unlink(missing_ok=True)
        self._write_json(_JOB, {"job": number, "overrides": overrides})

    def job(self) -> dict[str, Any] | None:
        """Read the `job` number and `overrides` of a sweep's job; None for any other run."""
        return None if (text := read_if_exists(self.path / _JOB)) is None else json.loads(text)

    @property
    def log(self) -> Path:
        """The run's log, which need not exist."""
        return next(iter(sorted(self.path.glob("*.log"))), self.path / "train.log")

    def write_failure(self, line: str) -> None:
        """Note why the run failed, in one line."""
        write_atomically(self.path / _ERROR, line + "\n")

    def failure(self) -> str | None:
        """Read why the run failed, in one line; None if it did not."""
        text = read_if_exists(self.path / _ERROR)
        return None if text is None else (text.strip().splitlines() or ["no reason given"])[-1]
