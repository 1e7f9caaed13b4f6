"""Find run folders and sweeps below a place, and refuse to write to a place that is in use.

runs/<sweep>/
    sweep.json         the words of the command, which keys it varies, the config that all jobs start from
    results.csv        one row per job, rewritten after each job
    study.db           Optuna's trials, if the sweep is a search
    sweep.log          why the launcher or the sweeper failed, if one did
    <job>/             a run folder, named by the settings that the sweep varies
"""

import glob
import json
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig

from adlight.locks import hold_lock
from adlight.runs.config import difference
from adlight.runs.federation import FederationFolder
from adlight.runs.files import Folder, write_atomically, write_json
from adlight.runs.folder import RunFolder
from adlight.runs.hydra_folder import HydraFolder
from adlight.runs.predictions import PredictionFolder
from adlight.types import UserError

Resumable = TypeVar("Resumable", RunFolder, PredictionFolder)
COLLECTIONS = {"evaluations", "predictions", "learned", "groups", "sites"}  # of a run, each with subfolders
PARTS = {"checkpoints", "panels", "gallery", "samples", "wandb", "tensorboard", ".hydra", "labels", *COLLECTIONS}
_NOTE, _LOCK = "sweep.json", ".lock"
SWEEP_FILES = {_NOTE, "multirun.yaml"}  # ours and Hydra's


class SweepFolder(Folder):
    """The folder of a sweep.

    Attributes:
        table_path: the table with one row per job; none of these files need exist.
        study_path: Optuna's trials.
        log: the sweep's log.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.table_path, self.study_path = self.path / "results.csv", self.path / "study.db"
        self.log = self.path / "sweep.log"

    @property
    def is_sweep(self) -> bool:
        """Whether the folder holds a sweep."""
        return (self.path / _NOTE).is_file()

    def write_note(self, words: list[str], keys: dict[str, bool], config: dict[str, Any]) -> None:
        """Record the words of a sweep's command, the config that all jobs start from, and which keys it varies."""
        write_json(self.path / _NOTE, {"words": words, "varied": keys, "config": config})

    def note(self) -> dict[str, Any]:
        """Read what `write_note` wrote; if there is no sweep yet, it has no keys."""
        note = json.loads((self.path / _NOTE).read_text()) if self.is_sweep else {"varied": {}}
        if not isinstance(note["varied"], dict):
            raise UserError(f"{self.path} holds a sweep of an earlier version: choose another hydra.sweep.dir")
        return note

    def jobs(self) -> list[RunFolder]:
        """List the jobs that have begun, in the order of their numbers."""
        runs = [RunFolder(path) for path in self.path.iterdir() if path.is_dir()]
        jobs = [(job["job"], run.path.name, run) for run in runs if (job := run.job())]
        return [run for _, _, run in sorted(jobs, key=lambda job: job[:2])]

    def write_table(self, text: str) -> None:
        """Write the table."""
        write_atomically(self.table_path, text)

    def remove_unused(self) -> bool:
        """Remove the folder if no job has begun, as after a mistyped setting. -> whether it was removed."""
        if not {path.name for path in self.path.iterdir()} <= {*SWEEP_FILES, _LOCK, self.study_path.name}:
            return False
        shutil.rmtree(self.path, ignore_errors=True)
        return True

    def lock(self) -> AbstractContextManager[None]:
        """Lock the table, so that each process that writes it has read all results written before."""
        return hold_lock(self.path / _LOCK)


def find_runs(places: Sequence[str]) -> list[RunFolder]:
    """Find run folders at or below `places`, in natural sort order; links are followed, and no run is found twice.

    Folders inside a run, such as evaluations and predictions, are found only if they are named.

    Raises:
        UserError: a place does not exist and, as a glob, matches nothing.
    """
    found, seen = set[Path](), set[Path]()
    for place in places:
        path = Path(place).expanduser()
        matches = [path] if path.exists() else list(map(Path, glob.glob(str(path), recursive=True)))
        if not matches:
            raise UserError(f"runs={place}: there is no such folder, and as a glob it matches nothing")
        for match in matches:
            waiting = [match]  # links are followed at the end, so that runs are found where they lie
            while waiting:
                for folder, below, _ in os.walk(waiting.pop(0)):
                    if (real := Path(folder).resolve()) in seen:
                        below.clear()
                        continue
                    seen.add(real)
                    if RunFolder(folder).is_run and not FederationFolder(folder).is_federation:  # its sites are runs
                        found.add(Path(folder))
                        below.clear()
                    below[:] = sorted(name for name in below if not name.startswith("."))
                    waiting += [path for name in below if (path := Path(folder, name)).is_symlink()]
    return [RunFolder(path) for path in sorted(found, key=natural_key)]


def find_studies(places: Sequence[str]) -> list[SweepFolder]:
    """Find Optuna's searches at `places` and around the runs below them, in natural sort order."""
    folders = {Path(run.path).parent for run in find_runs(places)}
    folders |= {Path(place).expanduser() for place in places}
    return [sweep for path in sorted(folders, key=natural_key) if (sweep := SweepFolder(path)).study_path.is_file()]


def natural_key(path: Path) -> list[tuple[float, str]]:
    """Return a sort key that compares numbers in a path by value: 0.75 before 0.8, 9 before 10."""
    parts = re.split(r"(\d+(?:\.\d+)?)", str(path))
    return [(float(part), part) if i % 2 else (0.0, part) for i, part in enumerate(parts)]


def find_unfinished(folders: Sequence[Resumable], config: DictConfig, ignored: Sequence[str] = ()) -> Resumable | None:
    """Find the newest resumable run or prediction with the same config, except for `ignored` keys."""
    unfinished = [folder for folder in folders if folder.is_run and folder.can_resume and not folder.is_finished]
    matches = [folder for folder in unfinished if _has_config(folder, config, ignored)]
    return max(matches, key=lambda folder: folder.last_change, default=None)


def _has_config(folder: HydraFolder, config: DictConfig, ignored: Sequence[str]) -> bool:
    try:
        return not difference(folder.read_config(), config, ignored)
    except UserError as error:
        print(f"not resumed: {error}", flush=True)
        return False


def is_training(run: RunFolder) -> bool:
    """Return whether a folder is a training, and not an evaluation or prediction."""
    if run.can_resume or run.best_checkpoint.exists():
        return True
    if not run.is_run:
        return run.is_finished
    try:
        return "run" not in run.read_config()
    except UserError:  # of another version or damaged, but still worth keeping
        return True


def check_free(setting: str, folder: Path, *, below: bool = True) -> None:
    """Raise a UserError if a folder is a run, is part of a run or, with `below`, contains a run.

    `setting` is the name of the setting for the folder; the folder need not exist.
    """
    place, source = folder.expanduser().resolve(), f"{setting}={folder}"
    if is_training(RunFolder(place)):
        raise UserError(f"{source} is a run, which would be overwritten: choose another folder")
    for parent in place.parents:
        part, *others = place.relative_to(parent).parts
        if part in PARTS and not (part in COLLECTIONS and others) and is_training(RunFolder(parent)):
            raise UserError(f"{source} is part of the run {parent}: choose another folder")
    for path, names, _ in os.walk(place) if below else ():
        names[:] = [name for name in names if not name.startswith(".")]
        for name in names:
            if is_training(RunFolder(Path(path) / name)):
                raise UserError(f"{source} contains the run {Path(path) / name}: choose another folder")


def check_no_foreign_files(setting: str, folder: Path) -> None:
    """Raise a UserError if a folder contains other files than a run, sweep or result, such as the user's images.

    `setting` is the name of the setting for the folder; the folder need not exist. Hidden files are ignored.
    """
    place = folder.expanduser()
    if RunFolder(place).is_run or not place.is_dir():
        return
    names = sorted(name for name in os.listdir(place) if not name.startswith("."))
    others = [name for name in names if not name.endswith(".log")]
    if others and SWEEP_FILES.isdisjoint(names):
        raise UserError(f"{setting}={folder} is not a run and not empty (it contains {others[0]}): name a new folder")
