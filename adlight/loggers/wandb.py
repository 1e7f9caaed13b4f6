"""Curves and results at Weights & Biases."""

import errno
import netrc
import os
import secrets
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from pytorch_lightning import loggers
from pytorch_lightning.utilities import rank_zero_only

from adlight.runs.folder import RunFolder
from adlight.settings import PathName, Text, checked
from adlight.types import UserError, unknown_name

SUMMARIES = {"train/loss": "min", "val/auroc": "max"}  # the best of the curve; of test results the last one counts
Mode = Literal["online", "offline", "disabled"]


class WandbLogger(loggers.WandbLogger):
    """Log to Weights & Biases, with or without an account; a resumed run keeps its id.

    Everything lies in the run's folder, so that `wandb sync` can send an offline run later, from anywhere. W&B's own
    network failures are shown as one line, and a silent server is given up.

    Args:
        save_dir: the run's folder.
        sweep_dir: folder of the present multirun; its name is the group of the runs in it.
        mode: `online`, `offline` or `disabled`; None means what WANDB_MODE says, else online where this user has
            logged in, and offline elsewhere.
        group: overrides the sweep's name.
        name: of the run; None takes it from the folders.
        project, tags: of the run.
        settings: entity, job_type and others, as `wandb.init` takes them.

    Raises:
        ValueError: an unknown mode.
        UserError: `mode=online` without an account.
        OSError: the folder cannot be written; W&B itself would turn to /tmp without a word.
    """

    @checked
    def __init__(
        self,
        save_dir: PathName,
        sweep_dir: PathName | None = None,
        mode: Mode | None = None,
        group: Text | None = None,
        name: Text | None = None,
        project: Text = "adlight",
        tags: Sequence[Text] = (),
        **settings: Any,
    ) -> None:
        settings |= {"project": project, "tags": list(tags)}
        chosen, self.hint = choose_mode(mode), ""
        if _is_first_process():
            from wandb import Settings

            folder = Path(save_dir).absolute()
            _check_writable(folder / "wandb")
            if group is None and sweep_dir and folder.is_relative_to(Path(sweep_dir).absolute()):
                group = Path(sweep_dir).name
            known = RunFolder(folder).wandb_identity({"id": secrets.token_hex(4), "group": group})
            group = group or known["group"]
            name = name or (f"{group}/{folder.name}" if group else folder.name)
            # few words, no endless waiting, and tables in the run's folder rather than in the home
            words = Settings(quiet=True, init_timeout=30, finish_timeout=300, allow_offline_artifacts=False)
            settings |= {"id": known["id"], "settings": words}
            if chosen == "offline":
                self.hint = (
                    f"W&B: offline{'' if has_wandb_key() else ' (no account: `wandb login` adds one)'}; send this run "
                    f"later with: wandb sync {shlex.quote(str(folder / 'wandb'))}/offline-run-*-{known['id']}"
                )
        super().__init__(save_dir=save_dir, mode=chosen, group=group, name=name, **settings)
        self._wandb_init.pop("anonymous")  # wandb warns of Lightning's None

    @property
    def experiment(self) -> Any:
        """The run of wandb, started at first use in the first process; a dummy in the others."""
        if self._experiment is not None or not _is_first_process():
            return super().experiment
        from wandb.errors import Error

        try:
            run = super().experiment
        except Error as error:
            raise UserError(
                f"W&B cannot start: {str(error).splitlines()[0]} (mode=offline needs no network)"
            ) from error
        if self.hint:  # not earlier: a process that builds a logger may never use it
            print(self.hint, flush=True)
        run.define_metric("epoch")
        for pattern in ("train/*", "val/*"):
            run.define_metric(pattern, step_metric="epoch")
        for metric, best in SUMMARIES.items():
            run.define_metric(metric, step_metric="epoch", summary=f"{best},last")
        return run


def choose_mode(mode: str | None) -> str:
    """Decide how W&B is to work, see `WandbLogger`."""
    asked = mode or os.environ.get("WANDB_MODE")
    if asked is None:
        return "online" if has_wandb_key() else "offline"
    asked = {"dryrun": "offline", "run": "online"}.get(asked, asked)  # W&B's old words
    if asked not in get_args(Mode):
        raise ValueError(unknown_name("WANDB_MODE", asked, get_args(Mode)))
    if asked == "online" and not has_wandb_key():
        raise UserError("W&B mode=online needs an account: run `wandb login`, set WANDB_API_KEY, or use mode=offline")
    return asked


def has_wandb_key() -> bool:
    """Tell whether this user has logged in to W&B, by environment or `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(server) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _is_first_process() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def _check_writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
