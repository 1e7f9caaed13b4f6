"""Resume a run, sweep, prediction or federation: advice with commands to paste into a shell."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from adlight.cli.errors import explain
from adlight.cli.words import continue_in, to_override, value_of
from adlight.runs.config import difference
from adlight.runs.exported import folder_of
from adlight.runs.federation import FederationFolder
from adlight.runs.find import SweepFolder, find_unfinished
from adlight.runs.folder import RunFolder
from adlight.runs.overrides import compose_config
from adlight.runs.predictions import PredictionFolder
from adlight.runs.provenance import command_line
from adlight.types import UserError

MAY_CHANGE = ("batch_size", "device", "on_bad_image", "actors", "ray_address")  # when a prediction is resumed


def resume_advice(run: RunFolder) -> str:
    """Describe how to continue a training after Ctrl-C."""
    if not run.can_resume:
        return f"No epoch was finished, so there is nothing to resume in {run}."
    return f"The state of the last finished epoch is saved. Continue with: {_resume_command('train', run.path)}"


def use_advice(run: RunFolder) -> str:
    """Describe how to use a trained detector."""
    return f"use it: {command_line([to_override('run', run.path)], 'predict')} images=<file or folder>"


def add_advice(error: UserError | OSError, run: RunFolder, is_trained: bool, is_job: bool) -> None:
    """Raise an error again as a UserError with advice on how to continue; return if nothing was saved.

    Args:
        error: an error during training or test, such as a full disk or a damaged image.
        run: the run.
        is_trained: whether the training is complete.
        is_job: whether the run is a job of a sweep.
    """
    line = explain(error)
    if line is None or not (is_trained or (isinstance(error, OSError) and run.can_resume)):
        return
    kept = "The training is complete and saved" if is_trained else "The state of the last finished epoch is saved"
    then = "then resume the sweep" if is_job else f"then: {_resume_command('train', run.path)}"
    raise UserError(f"{line}. {kept}; fix this, {then}") from error


def resume_sweep_command(sweep: SweepFolder) -> str:
    """Return the command that continues a sweep."""
    return command_line([*sweep.note()["words"], "resume_sweep=true", to_override("hydra.sweep.dir", sweep.path)])


def prediction_advice(folder: PredictionFolder, reason: str = "") -> str:
    """Describe why a prediction stopped and how to continue it."""
    if not (count := folder.count()):
        return reason
    advice = f"{count} predictions are kept. Continue with: {_resume_command('predict', folder.path)}"
    return f"{reason}. {advice}" if reason else advice


def federation_advice(folder: FederationFolder) -> str:
    """Describe how to continue a federation that stopped."""
    averaged = folder.averaged()
    count = len(averaged.rows) if averaged else 0
    kept = f"{count} round{'s are' if count > 1 else ' is'} kept" if count else "No round is finished"
    return f"{kept}. Continue with: {_resume_command('federate', folder.path)}"


def resume_prediction(argv: list[str]) -> list[str]:
    """Join the arguments of an interrupted prediction and new ones; raise a UserError if there is none to resume."""
    which, words = value_of(argv, "resume") or "", [word for word in argv if not word.startswith("resume=")]
    if which == "auto":
        folder = _find_prediction(words)
        if folder is None:
            print("resume=auto: no interrupted prediction with these arguments; a new one starts", flush=True)
            return words
    elif not (folder := PredictionFolder(which)).can_resume:
        raise UserError(f"resume={which}: no prediction was interrupted there")
    before: Any = OmegaConf.to_container(folder.read_config())
    known = list(compose_config("predict", []))
    saved = [
        to_override(key, value)
        for key, value in before.items()
        if key in known and key != "resume" and value is not None
    ]
    return continue_in([*saved, *words], folder.path)


def _find_prediction(words: list[str]) -> PredictionFolder | None:
    place, run = value_of(words, "hydra.run.dir"), value_of(words, "run")
    places = [Path(place)] if place else sorted(RunFolder(folder_of(run or "")).predictions_folder.glob("*"))
    return find_unfinished(list(map(PredictionFolder, places)), compose_config("predict", words), MAY_CHANGE)


def check_same_prediction(folder: PredictionFolder, config: DictConfig) -> None:
    """Raise a UserError if a setting that affects the predictions has changed since they were begun."""
    if change := difference(folder.read_config(), config, MAY_CHANGE):
        raise UserError(f"resume={folder}: {change}: predict without resume")


def _resume_command(program: str, folder: Path) -> str:
    return command_line([to_override("resume", folder)], program)
