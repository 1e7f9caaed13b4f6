"""Logging to Weights & Biases."""

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
from adlight.types import UserError, first_line, unknown_name

SUMMARIES = {"train/loss": "min", "val/auroc": "max"}  # summarized by the best value of the curve, besides the last
Mode = Literal["online", "offline", "disabled"]


class WandbLogger(loggers.WandbLogger):
    """Log to Weights & Biases, with or without an account; a resumed run keeps its id.

    All files are written to the run's folder, so that `wandb sync` can upload an offline run later, from any machine.
    Network failures are reported in one line, and there is a time limit for a server that does not respond.

    Args:
        save_dir: the run's folder.
        sweep_dir: folder of the current multirun; its name becomes the group of its runs.
        mode: `online`, `offline` or `disabled`; None takes WANDB_MODE or, if it is not set, `online` for users who have
            logged in and `offline` otherwise.
        group: group of the run; overrides the sweep's name.
        name: name of the run; None derives it from the folders.
        project, tags: project and tags of the run.
        settings: further arguments of `wandb.init`, such as entity and job_type.

    Raises:
        UserError: `mode=online` without an account.
        OSError: the folder is not writable; W&B itself would silently use a temporary folder.
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
        tags: Sequence[Text] | None = None,
        **settings: Any,
    ) -> None:
        settings |= {"project": project, "tags": list(tags or ())}
        chosen, self.hint = choose_mode(mode), ""
        if _is_first_process():
            from wandb import Settings

            folder = Path(save_dir).absolute()
            (folder / "wandb").mkdir(parents=True, exist_ok=True)
            if not os.access(folder / "wandb", os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder / "wandb"))
            if group is None and sweep_dir and folder.is_relative_to(Path(sweep_dir).absolute()):
                group = Path(sweep_dir).name
            known = RunFolder(folder).wandb_identity({"id": secrets.token_hex(4), "group": group})
            group = group or known["group"]
            name = name or (f"{group}/{folder.name}" if group else folder.name)
            # with offline artifacts, tables would be written to the user's home
            quiet = Settings(quiet=True, init_timeout=30, finish_timeout=300, allow_offline_artifacts=False)
            settings |= {"id": known["id"], "settings": quiet}
            if chosen == "offline":
                self.hint = (
                    f"W&B: offline{'' if has_wandb_key() else ' (no account: `wandb login` adds one)'}; send this run "
                    f"later with: wandb sync {shlex.quote(str(folder / 'wandb'))}/offline-run-*-{known['id']}"
                )
        super().__init__(save_dir=save_dir, mode=chosen, group=group, name=name, **settings)
        self._wandb_init.pop("anonymous")  # Lightning passes None, which wandb warns about

    @property
    def experiment(self) -> Any:
        """The wandb run, started on first use in the first process; a dummy in all others."""
        if self._experiment is not None or not _is_first_process():
            return super().experiment
        from wandb.errors import Error

        try:
            run = super().experiment
        except Error as error:
            raise UserError(f"W&B cannot start: {first_line(error)} (mode=offline needs no network)") from error
        if self.hint:  # printed here, as a process may build a logger and never use it
            print(self.hint, flush=True)
        run.define_metric("epoch")
        for pattern in ("train/*", "val/*"):
            run.define_metric(pattern, step_metric="epoch")
        for metric, best in SUMMARIES.items():
            run.define_metric(metric, step_metric="epoch", summary=f"{best},last")
        return run


def choose_mode(mode: str | None) -> str:
    """Choose W&B's mode from the setting, the environment and the user's login; see `WandbLogger`."""
    mode = mode or os.environ.get("WANDB_MODE")
    if mode is None:
        return "online" if has_wandb_key() else "offline"
    mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)  # W&B's former names
    if mode not in get_args(Mode):
        raise ValueError(unknown_name("WANDB_MODE", mode, get_args(Mode)))
    if mode == "online" and not has_wandb_key():
        raise UserError("W&B mode=online needs an account: run `wandb login`, set WANDB_API_KEY, or use mode=offline")
    return mode


def has_wandb_key() -> bool:
    """Return whether the user has logged in to W&B, by WANDB_API_KEY or `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(server) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _is_first_process() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0
