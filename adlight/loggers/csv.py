"""Training curves as a CSV file with a row per epoch and a column per metric."""

import csv
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from adlight.runs.files import write_atomically
from adlight.runs.tables import to_csv
from adlight.settings import PathName, checked
from adlight.types import UserError


class CSVLogger(Logger):
    """Write a row per epoch; the file is always replaced as a whole.

    Lightning's CSVLogger deletes the file when a run is resumed. This logger keeps the rows of earlier epochs, and
    replaces the row of an epoch that is trained again.

    Args:
        path: the file.
        pretraining: the file for a pretraining stage; the attribute of this name is the logger of that stage.
    """

    name, version = "csv", ""

    @checked
    def __init__(self, path: PathName, pretraining: PathName | None = None) -> None:
        super().__init__()
        self.pretraining = CSVLogger(pretraining) if pretraining else self
        self.path = Path(path)
        self.rows: dict[int, dict[str, Any]] = self._read() if self.path.exists() else {}

    def _read(self) -> dict[int, dict[str, Any]]:
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                return {int(row["epoch"]): row for row in csv.DictReader(file)}
        except (LookupError, ValueError, TypeError, csv.Error) as error:
            raise UserError(f"{self.path} is damaged ({error}): remove it to go on without its rows") from error

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run folder holds the config."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add an epoch's metrics to its row; test metrics are not part of a curve."""
        curve = {name: value for name, value in metrics.items() if not name.startswith(("test/", "epoch"))}
        if curve and "epoch" in metrics:
            epoch = int(metrics["epoch"])
            self.rows.setdefault(epoch, {"epoch": epoch}).update(curve if step is None else {"step": step, **curve})

    @rank_zero_only
    def write_row(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        """Write an epoch's metrics before its checkpoint is saved."""
        self.log_metrics({"epoch": epoch, **metrics}, step)
        self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write all rows."""
        names = list(dict.fromkeys(["epoch", "step", *(name for row in self.rows.values() for name in row)]))
        rows = ([self.rows[epoch].get(name) for name in names] for epoch in sorted(self.rows))
        write_atomically(self.path, to_csv(names, rows))
