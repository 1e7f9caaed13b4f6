"""Folders in which something lies already that a command may not write over."""

import os
from pathlib import Path

from adlight.runs.folder import RunFolder
from adlight.runs.hydra_folder import HydraFolder
from adlight.types import UserError

PARTS = {"checkpoints", "panels", "gallery", "samples", "wandb", "tensorboard", "evaluations", "predictions", ".hydra"}
PARTS |= {"groups", "labels", "learned", "sites"}
MARKS = {"sweep.json", "multirun.yaml"}  # of sweeps, ours and Hydra's
OF_MANY = {"evaluations", "predictions", "learned", "groups", "sites"}  # they hold a folder for each of them


def is_training(run: RunFolder) -> bool:
    """Tell whether a folder is a training's; an evaluation's or a prediction's may be written over."""
    if run.can_resume or run.best_checkpoint.exists():
        return True
    if not run.is_run:
        return run.is_finished
    try:
        return "run" not in run.read_config()
    except UserError:  # of another version, or damaged: something is lost with it all the same
        return True


def check_free(setting: str, folder: Path, *, below: bool = True) -> None:
    """Refuse a folder that is a run, a part of one or, with `below`, holds one.

    Args:
        setting: what named the folder, for the message.
        folder: it need not exist.
        below: whether to look below it too.

    Raises:
        UserError: it is.
    """
    place, said = folder.expanduser().resolve(), f"{setting}={folder}"
    if is_training(RunFolder(place)):
        raise UserError(f"{said} is a run, which would be written over: choose another folder")
    for parent in place.parents:
        part, *others = place.relative_to(parent).parts
        if part in PARTS and not (part in OF_MANY and others) and is_training(RunFolder(parent)):
            raise UserError(f"{said} is a part of the run {parent}: choose another folder")
    for path, names, _ in os.walk(place) if below else ():
        names[:] = [name for name in names if not name.startswith(".")]
        found = next((name for name in names if is_training(RunFolder(Path(path) / name))), None)
        if found is not None:
            raise UserError(f"{said} holds the run {Path(path) / found}: choose another folder")


def check_own(setting: str, folder: Path) -> None:
    """Refuse a folder in which something lies that is none of ours, such as a user's images; hidden files do not count.

    Args:
        setting: what named the folder, for the message.
        folder: it need not exist.

    Raises:
        UserError: it holds something, and no run, sweep or result of a command.
    """
    place = folder.expanduser()
    if HydraFolder(place).is_run or not place.is_dir():
        return
    names = sorted(name for name in os.listdir(place) if not name.startswith("."))
    if MARKS.isdisjoint(names) and (others := [name for name in names if not name.endswith(".log")]):
        raise UserError(f"{setting}={folder} is no run and not empty (it holds {others[0]}): name a new one")
