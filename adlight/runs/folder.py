"""Run folders: the files in them, and how they are written and read.

runs/<name>/
    .hydra/                              the composed config, see hydra_folder.py
    run.json                             command, seed, commit, versions, machine
    checkpoints/best.ckpt, last.ckpt     tensors only
    checkpoints/pretraining.ckpt         the last epoch of the pretraining stage, if there is one
    checkpoints.sha256                   hashes of the checkpoints, see weights.py
    metrics.csv, pretraining.csv         curves of the detector and of its pretraining
    metrics.json                         final numbers; their presence marks a finished run
    predictions.csv, defects.csv         one row per test image; one row per defect type
    calibration.csv, trained.csv         scores that the thresholds were calibrated on; training images; see tables.py
    panels/*.png, samples/*.png          test images; images that a GAN generates during training
    gallery/*.webp                       small pictures of test images, see subfolders.py
    wandb.json                           id and group at W&B
    train.log, error.txt                 the terminal's output; why the run failed, if it did
    job.json                             number and overrides of a sweep's job
    .lock                                held by the process that works in the folder
"""

import json
import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adlight.locks import hold_lock
from adlight.runs import tables
from adlight.runs.files import is_numbered, rank, read_if_exists, write_atomically, write_json
from adlight.runs.hydra_folder import SUBFOLDER, HydraFolder
from adlight.runs.subfolders import GalleryFolder
from adlight.types import Record, UserError

if TYPE_CHECKING:  # they take seconds: not for --help
    from pandas import DataFrame

    from adlight.detection.module import AnomalyModule

_RUN, _WANDB, _JOB, _ERROR = "run.json", "wandb.json", "job.json", "error.txt"
_CHECKPOINTS, _LOCK, _DATA_LOCK = "checkpoints", ".lock", ".data.lock"
_METRICS, _PREVIOUS, _DEFECTS = "metrics.json", "metrics.previous.json", "defects.csv"
_CURVES = ("pretraining.csv", "metrics.csv")  # in the order of the training


class RunFolder(HydraFolder):
    """The folder of a run, or of a run's evaluation.

    Attributes:
        best_checkpoint: the weights of the best validation; none of these files need exist.
        last_checkpoint, stage_checkpoint: the full state of the last epoch, and of the stage before the detector.
        calibrated_checkpoint: what an evaluation fitted anew, see restore.py.
        predictions_path: the table with one row per test image.
        panels, predictions_folder: the folders of the panels, and of predictions for new images.
        gallery: small pictures of test images.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.best_checkpoint, self.last_checkpoint, self.stage_checkpoint, self.calibrated_checkpoint = (
            self.path / _CHECKPOINTS / f"{name}.ckpt" for name in ("best", "last", "pretraining", "calibrated")
        )
        self.predictions_path, self.predictions_folder = self.path / "predictions.csv", self.path / "predictions"
        self.panels, self.gallery = self.path / "panels", GalleryFolder(self.path / "gallery")

    @property
    def is_finished(self) -> bool:
        """Whether the run has been tested."""
        return (self.path / _METRICS).exists()

    @property
    def can_resume(self) -> bool:
        """Whether there is a checkpoint to resume the training from."""
        return self.last_checkpoint.exists() or self.stage_checkpoint.exists()

    @property
    def last_change(self) -> float:
        """Time in seconds at which the newest checkpoint for resuming was written; 0 if there is none."""
        paths = self.last_checkpoint, self.stage_checkpoint
        return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)

    @property
    def has_results(self) -> bool:
        """Whether the folder holds checkpoints or metrics."""
        return self.is_finished or (self.path / _CHECKPOINTS).exists()

    def checkpoint(self, which: str) -> Path:
        """Find a checkpoint: `best`, `last` or a path. If it is missing, raise a UserError that lists the others."""
        folder = self.path / _CHECKPOINTS
        path = folder / f"{which}.ckpt" if which in ("best", "last") else Path(which)
        if not path.is_file():
            existing = ", ".join(sorted(found.name for found in folder.glob("*.ckpt"))) or "none"
            raise UserError(f"checkpoint {path} does not exist (in {folder}: {existing})")
        return path

    def begin(self, metadata: dict[str, Any]) -> None:
        """Write `run.json`, and rename earlier results, as a resumed run is unfinished again."""
        (self.path / _ERROR).unlink(missing_ok=True)
        if self.is_finished:
            os.replace(self.path / _METRICS, self.path / _PREVIOUS)
        write_json(self.path / _RUN, metadata)

    def metadata_text(self) -> str | None:
        """Read `run.json`, which changes each time the run is begun or resumed; None before it has begun."""
        return read_if_exists(self.path / _RUN)

    def write_results(self, module: "AnomalyModule", records: list[Record], metadata: dict[str, Any]) -> None:
        """Write the tables and, last, `metrics.json`, which marks the run as finished."""
        assert module.results is not None
        rows = tables.prediction_rows(records, module.predictions)
        write_atomically(self.predictions_path, tables.to_csv(tables.PREDICTIONS, rows))
        tables.write_calibration(self.path, module.calibration)
        write_atomically(self.path / _DEFECTS, tables.to_csv(tables.DEFECTS, tables.defect_rows(module.results)))
        write_json(self.path / _METRICS, module.results.as_dict() | module.calibration.as_dict() | metadata)
        (self.path / _ERROR).unlink(missing_ok=True)

    def read_results(self) -> dict[str, Any] | None:
        """Read `metrics.json`; None if the run is not finished. Raise a UserError if the file is damaged."""
        path = self.path / _METRICS
        if (text := read_if_exists(path)) is None:
            return None
        try:
            content = json.loads(text)
            tables.check_results(content)
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): test the run again with adlight evaluate") from error
        return content

    def predictions(self) -> "DataFrame | None":
        """Read the table of test images, if the run is finished and has one; raise a UserError if it is damaged."""
        is_known = self.is_finished and self.predictions_path.exists()  # a resumed run still has its earlier table
        return tables.read_predictions(self.predictions_path) if is_known else None

    @property
    def result_paths(self) -> list[Path]:
        """The files with a run's numbers."""
        return [self.path / _METRICS, self.predictions_path, self.path / _DEFECTS]

    @property
    def curve_paths(self) -> list[Path]:
        """The existing files of curves, in the order of the training."""
        return [path for name in _CURVES if (path := self.path / name).is_file()]

    def panel_paths(self) -> list[Path]:
        """List the files of the panels of a finished run, one per category."""
        return sorted(self.panels.glob("*.png")) if self.is_finished else []

    def wandb_identity(self, new: dict[str, Any]) -> dict[str, Any]:
        """Return the run's identity at W&B: `new` the first time, and from then on the stored one."""
        if not (self.path / _WANDB).exists():
            write_json(self.path / _WANDB, new)
        return json.loads((self.path / _WANDB).read_text())

    def lock(self, wait: bool = True) -> AbstractContextManager[None]:
        """Lock the folder against other commands; the first process of a run holds the lock for all its processes.

        If the folder is locked already, wait, as for a job of a sweep that was started twice, or of a search that
        repeats a job; without `wait`, raise a UserError.
        """
        reason = f"another process works in {self}"
        refusal = "" if wait else f"{reason}: wait for it to end, or choose another hydra.run.dir"
        return hold_lock(self.path / _LOCK, f"{reason}: waiting for it", refusal) if rank() == 0 else nullcontext()

    def data_lock(self) -> AbstractContextManager[None]:
        """Lock the preparation of the data, so that the processes of a run do it one after another."""
        return hold_lock(self.path / _DATA_LOCK) if is_numbered() else nullcontext()

    def write_job(self, number: int, overrides: list[str]) -> None:
        """Record number and overrides of a sweep's job before it begins, and remove its earlier failure."""
        (self.path / _ERROR).unlink(missing_ok=True)
        write_json(self.path / _JOB, {"job": number, "overrides": overrides})

    def job(self) -> dict[str, Any] | None:
        """Read the `job` number and `overrides` of a sweep's job; None for any other run."""
        return None if (text := read_if_exists(self.path / _JOB)) is None else json.loads(text)

    @property
    def log(self) -> Path:
        """The run's log, which need not exist."""
        return next(iter(sorted(self.path.glob("*.log"))), self.path / "train.log")

    def remove_unused(self) -> None:
        """Remove the folder unless it holds more than a config, logs and locks."""
        names = {path.name for path in self.path.glob("*") if path.suffix != ".log"}
        if names <= {SUBFOLDER, _ERROR, _LOCK, _DATA_LOCK}:
            shutil.rmtree(self.path, ignore_errors=True)

    def write_failure(self, line: str) -> None:
        """Record in one line why the run failed and, if it was not the first process, in which process."""
        write_atomically(self.path / _ERROR, (f"process {rank()}: " if rank() else "") + line + "\n")

    def read_attempt(self) -> dict[Path, bytes | None]:
        """Read the config and the failure (None: none) of a run that has begun, which a new attempt would replace."""
        paths = [*(self.path / SUBFOLDER).glob("*.yaml"), self.path / _ERROR] if self.metadata_text() else []
        return {path: path.read_bytes() if path.exists() else None for path in paths}

    def failure(self) -> str | None:
        """Read in one line why the run failed; None if it did not."""
        text = read_if_exists(self.path / _ERROR)
        return None if text is None else (text.strip().splitlines() or ["no reason given"])[-1]
