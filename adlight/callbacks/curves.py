"""Curves: one row an epoch in `metrics.csv`, and Weights & Biases where it is asked for."""

import csv
import netrc
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only


class CurveFile(Logger):
    """A CSV file with one row an epoch and a column a metric.

    Lightning's CSVLogger deletes the file when a run is resumed; here the rows of earlier epochs stay, and the row
    of an epoch that is done again is replaced.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)
        self.rows: dict[int, dict[str, Any]] = {}
        if self.path.exists():
            with self.path.open(newline="") as file:
                self.rows = {int(row["epoch"]): row for row in csv.DictReader(file)}

    @property
    def name(self) -> str:
        """The logger's name."""
        return "csv"

    @property
    def version(self) -> str:
        """There is one file a run."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run's composed config lies beside the file."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add an epoch's metrics to its row; tests are no part of a curve."""
        curve = {name: value for name, value in metrics.items() if not name.startswith(("test/", "epoch"))}
        if curve and "epoch" in metrics:
            epoch = int(metrics["epoch"])
            self.rows.setdefault(epoch, {}).update({"epoch": epoch, "step": step, **curve})

    @rank_zero_only
    def save(self) -> None:
        """Write the whole file anew and rename it into place."""
        names = list(dict.fromkeys(["epoch", "step", *(name for row in self.rows.values() for name in row)]))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".part")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows[epoch] for epoch in sorted(self.rows))
        os.replace(partial, self.path)


def wandb_logger(save_dir: str, **settings: Any) -> WandbLogger:
    """Make a W&B logger that works without an account: offline unless a key is set (`wandb sync` sends it later).

    Args:
        save_dir: the run's folder.
        settings: project, entity, group, tags: as `wandb.init` takes them.
    """
    Path(save_dir).mkdir(parents=True, exist_ok=True)  # wandb writes to /tmp without a word where it is missing
    return WandbLogger(save_dir=save_dir, offline=not has_wandb_key(), **settings)


def has_wandb_key() -> bool:
    """Whether this user has logged in to W&B, by environment or `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
