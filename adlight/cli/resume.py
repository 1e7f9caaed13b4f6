"""Commands that continue a run, a sweep or a prediction, to be pasted into a shell."""

import re
import shlex
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from adlight.cli.arguments import quote, value_of
from adlight.cli.errors import explain
from adlight.runs.config import CONF, difference
from adlight.runs.exported import folder_of
from adlight.runs.federation import FederationFolder
from adlight.runs.folder import RunFolder
from adlight.runs.predictions import PredictionFolder
from adlight.runs.provenance import command_line
from adlight.runs.sweep_folder import SweepFolder
from adlight.types import UserError

MAY_CHANGE = ("batch_size", "device", "on_bad_image", "actors", "ray_address")  # when a prediction goes on


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


def resume_prediction(argv: list[str]) -> list[str]:
    """Give the words of a prediction that goes on: those of the interrupted command, and those that are new.

    Raises:
        UserError: nothing was interrupted in the folder that `resume` names.
    """
    which, words = str(value_of(argv, "resume")), [word for word in argv if not word.startswith("resume=")]
    if which == "auto":
        found = _find_prediction(words)
        if found is None:
            print("resume=auto: no interrupted prediction with these arguments; a new one starts", flush=True)
            return words
    elif not (found := PredictionFolder(which)).can_resume:
        raise UserError(f"resume={which}: no prediction was interrupted there")
    before = _plain(found.read_config())
    known = _plain(_compose([]))
    saved = [
        quote(key, value) if isinstance(value, str) else f"{key}={value}"
        for key, value in before.items()
        if key in known and key != "resume" and value is not None
    ]
    words = [word for word in words if not word.startswith("hydra.run.dir=")]
    place = [quote("resume", found.path), quote("hydra.run.dir", found.path), "hydra.output_subdir=null"]
    return [*saved, *words, *place]


def _find_prediction(words: list[str]) -> PredictionFolder | None:
    """Find the newest interrupted prediction of the same settings."""
    place, run, wanted = value_of(words, "hydra.run.dir"), value_of(words, "run"), _compose(words)
    places = [Path(place)] if place else sorted(RunFolder(folder_of(run or "")).predictions_folder.glob("*"))
    unfinished = [one for one in map(PredictionFolder, places) if one.can_resume]
    matches = [one for one in unfinished if not _changed(one.read_config(), wanted)]
    return max(matches, key=lambda one: one.last_change, default=None)


def check_same_prediction(folder: PredictionFolder, config: DictConfig) -> None:
    """Refuse to go on with settings of which other predictions would come.

    Raises:
        UserError: one has changed.
    """
    if change := _changed(folder.read_config(), config):
        raise UserError(f"resume={folder}: {change}: predict without resume")


def prediction_advice(folder: PredictionFolder, said: str) -> str:
    """Say what is kept of a prediction that stops, after what is said of the reason."""
    count = folder.count()
    command = f"{command_line([], 'adlight.predict')} {_shell_word('resume', folder.path)}"
    kept = [f"{count} predictions are kept. Continue with: {command}"] if count else []
    return ". ".join(filter(None, (said, *kept)))


def federation_advice(folder: FederationFolder) -> str:
    """Say what is kept of a federation that stops."""
    known = folder.averaged()
    command = f"{command_line([], 'adlight.federate')} {_shell_word('resume', folder.path)}"
    kept = f"{len(known.rows)} rounds are kept" if known else "No round is finished"
    return f"{kept}. Continue with: {command}"


def _compose(words: list[str]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("predict", [word for word in words if not word.startswith(("hydra.", "-"))])


def _changed(before: DictConfig, now: DictConfig) -> str:
    plain = [{key: one for key, one in _plain(config).items() if key not in MAY_CHANGE} for config in (before, now)]
    return difference(*plain)


def _plain(config: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(config)  # type: ignore[return-value]


def _shell_word(key: str, path: Path) -> str:
    plain = re.fullmatch(r"[\w./-]+", str(path), re.ASCII)
    return f"{key}={path}" if plain else shlex.quote(quote(key, path))
