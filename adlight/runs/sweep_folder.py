"""Sweep folders: many runs, each in a folder of its own, and one table of them all.

runs/<sweep>/
    sweep.json         the command's words, what it varies, and the config that all jobs start from
    results.csv        one row per job, rewritten after each of them
    study.db           of a search: Optuna's trials
    sweep.log          what the launcher or the sweeper failed of, if one did
    <job>/             a run folder, named by what the sweep varies
"""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from adlight.runs.files import hold_lock, write_atomically
from adlight.runs.folder import RunFolder

_NOTE, _TABLE, _LOG, _LOCK, _STUDY = "sweep.json", "results.csv", "sweep.log", ".lock", "study.db"


class SweepFolder:
    """A sweep's folder, which need not exist yet; it prints as its path."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_sweep(self) -> bool:
        """Whether the folder holds a sweep."""
        return (self.path / _NOTE).is_file()

    def write_note(self, words: list[str], varied: list[str], config: dict[str, Any]) -> None:
        """Note a sweep: the words of its command, the keys that it varies, the config that all jobs start from."""
        note = {"words": words, "varied": varied, "config": config}
        write_atomically(self.path / _NOTE, json.dumps(note, indent=2) + "\n")

    def note(self) -> dict[str, Any]:
        """Read the `words`, `varied` and `config` of the sweep."""
        return json.loads((self.path / _NOTE).read_text())

    def jobs(self) -> list[RunFolder]:
        """List the jobs that the sweep has begun, in the order of their numbers."""
        runs = [RunFolder(path) for path in self.path.iterdir() if path.is_dir()]
        found = [(job["job"], run) for run in runs if (job := run.job())]
        return [run for _, run in sorted(found, key=lambda pair: (pair[0], pair[1].path.name))]

    @property
    def table_path(self) -> Path:
        """The table with one row per job."""
        return self.path / _TABLE

    def write_table(self, text: str) -> None:
        """Write the table."""
        write_atomically(self.table_path, text)

    def lock(self) -> AbstractContextManager[None]:
        """Let one process write the table at a time: the last has seen what all have done."""
        return hold_lock(self.path / _LOCK)

    @property
    def study_path(self) -> Path:
        """The trials of a search by Optuna, which need not exist."""
        return self.path / _STUDY

    @property
    def log(self) -> Path:
        """The sweep's log, which need not exist."""
        return self.path / _LOG
