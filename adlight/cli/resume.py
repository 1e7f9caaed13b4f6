"""Commands that continue a run or a sweep, to be pasted into a shell."""

import re
import shlex
from pathlib import Path

from adlight.cli.arguments import quote
from adlight.cli.errors import explain
from adlight.runs.folder import RunFolder
from adlight.runs.provenance import command_line
from adlight.runs.sweep_folder import SweepFolder
from adlight.types import UserError


def resume_command(run: RunFolder) -> str:
    """Give the command that continues a run."""
    return f"{command_line([])} {_shell_word('resume', run.path)}"


def resume_advice(run: RunFolder) -> str:
    """Say how to continue after Ctrl-C."""
    if not run.can_resume:
        return f"No epoch was finished, so there is nothing to resume in {run}."
    return f"The state of the last finished epoch is saved. Continue with: {resume_command(run)}"


def advise(error: UserError | OSError, run: RunFolder, is_trained: bool, is_job: bool) -> None:
    """Raise an error again with how to go on, where it came when something was kept.

    Args:
        error: one that a user can fix: a full disk in the middle of a training, say, or an image that is damaged.
        run: in which it came.
        is_trained: whether the training is done.
        is_job: whether a sweep runs it.

    Raises:
        UserError: it, with that.
    """
    line = explain(error)
    if line is None or not (is_trained or (isinstance(error, OSError) and run.can_resume)):
        return
    kept = "The training is done and kept" if is_trained else "The state of the last finished epoch is saved"
    then = "then resume the sweep" if is_job else f"then: {resume_command(run)}"
    raise UserError(f"{line}. {kept}; fix this, {then}") from error


def resume_sweep_command(sweep: SweepFolder) -> str:
    """Give the command that continues a sweep."""
    command = command_line([*sweep.note()["words"], "resume_sweep=true"])
    return f"{command} {_shell_word('hydra.sweep.dir', sweep.path)}"


def _shell_word(key: str, path: Path) -> str:
    plain = re.fullmatch(r"[\w./-]+", str(path), re.ASCII)
    return f"{key}={path}" if plain else shlex.quote(quote(key, path))
