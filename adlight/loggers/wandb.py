"""Curves: one row an epoch in `metrics.csv`, and Weights & Biases where it is asked for."""

import csv
import errno
import netrc
import os
import secrets
import shlex
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from adlight.runs.folder import RunFolder
from adlight.types import UserError


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


class WandbRun(WandbLogger):
    """A run of Weights & Biases that works without an account, and keeps its id when the run is resumed.

    Everything lies in the run's folder, so that `wandb sync` can send an offline run later, from anywhere. W&B's own
    network failures come as one line; it gives up on a silent server instead of waiting for ever.

    Args:
        save_dir: the run's folder.
        sweep_dir: folder of the multirun that is going on; its name is the group of the runs in it.
        mode: `online`, `offline` or `disabled`; None means what WANDB_MODE says, else online where this user has
            logged in, and offline elsewhere.
        group: overrides the sweep's name.
        name: of the run; None takes it from the folders.
        settings: project, entity, job_type, tags: as `wandb.init` takes them.

    Raises:
        ValueError: an unknown mode.
        UserError: `mode=online` without an account.
        OSError: the folder cannot be written; W&B itself would turn to /tmp without a word.
    """

    def __init__(
        self,
        save_dir: str,
        sweep_dir: str | None = None,
        mode: str | None = None,
        group: str | None = None,
        name: str | None = None,
        **settings: Any,
    ) -> None:
        mode, self.hint = chosen_mode(mode), ""
        if first_process():
            folder = Path(save_dir).absolute()
            check_writable(folder / "wandb")
            if group is None and sweep_dir and folder.is_relative_to(Path(sweep_dir).absolute()):
                group = Path(sweep_dir).name
            known = RunFolder(folder).wandb_identity({"id": secrets.token_hex(4), "group": group})
            group = group or known["group"]
            name = name or (f"{group}/{folder.name}" if group else folder.name)
            settings |= {"id": known["id"], "settings": limits()}
            if mode == "offline":
                self.hint = (
                    f"W&B: offline{'' if has_wandb_key() else ' (no account: `wandb login` adds one)'}; send this run "
                    f"later with: wandb sync {shlex.quote(str(folder / 'wandb'))}/offline-run-*-{known['id']}"
                )
        super().__init__(save_dir=save_dir, mode=mode, group=group, name=name, **settings)
        self._wandb_init.pop("anonymous")  # wandb warns of Lightning's None

    @property
    def experiment(self) -> Any:
        """The run of wandb, started at first use on the first process; on the others something that does nothing."""
        if self._experiment is not None or not first_process():
            return super().experiment
        from wandb.errors import Error

        try:
            run = super().experiment
        except Error as error:
            raise UserError(
                f"W&B cannot start: {str(error).splitlines()[0]} (logger.wandb.mode=offline needs no network)"
            ) from error
        if self.hint:  # not earlier: the processes of a job are spawned from one that builds a logger and never uses it
            print(self.hint, flush=True)
        run.define_metric("epoch")
        for pattern in ("train/*", "val/*"):
            run.define_metric(pattern, step_metric="epoch")
        for metric, best in SUMMARIES.items():
            run.define_metric(metric, step_metric="epoch", summary=f"{best},last")
        return run


SUMMARIES = {"train/loss": "min", "val/auroc": "max"}  # the best of the curve; of test results the last one counts
MODES = ("online", "offline", "disabled")


def first_process() -> bool:
    """Whether this is the process that logs."""
    return getattr(rank_zero_only, "rank", 0) == 0


def chosen_mode(mode: str | None) -> str:
    """How W&B is to work; see `WandbRun`."""
    asked = mode or os.environ.get("WANDB_MODE")
    if asked is None:
        return "online" if has_wandb_key() else "offline"
    asked = {"dryrun": "offline", "run": "online"}.get(asked, asked)  # W&B's old words
    if asked not in MODES:
        raise ValueError(f"W&B mode {asked!r} is unknown: logger.wandb.mode is one of {', '.join(MODES)}")
    if asked == "online" and not has_wandb_key():
        raise UserError(
            "logger.wandb.mode=online needs an account: run `wandb login` or set WANDB_API_KEY, or use mode=offline"
        )
    return asked


def check_writable(folder: Path) -> None:
    """Make a folder and see that files can be written into it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def limits() -> Any:
    """W&B's settings: few words, no endless waiting, and tables in the run's folder rather than in the home."""
    import wandb

    return wandb.Settings(quiet=True, init_timeout=30, finish_timeout=300, allow_offline_artifacts=False)


def has_wandb_key() -> bool:
    """Whether this user has logged in to W&B, by environment or `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(server) is not None
    except (OSError, netrc.NetrcParseError):
        return False
