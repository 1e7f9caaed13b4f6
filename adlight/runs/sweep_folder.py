"""Sweep folders: many runs, each in a folder of its own, and one table of all of them.

runs/<sweep>/
    sweep.json         the words of the command, the keys that it varies, the config that all jobs start from
    results.csv        one row per job, rewritten after each job
    study.db           Optuna's trials, if the sweep is a search
    sweep.log          why the launcher or the sweeper failed, if one did
    <job>/             a run folder, named by what the sweep varies
"""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from adlight.runs.files import hold_lock, write_atomically
from adlight.runs.folder import RunFolder

_NOTE, _LOCK = "sweep.json", ".lock"


class SweepFolder:
    """The folder of a sweep, which need not exist yet; it prints as its path.

    Attributes:
        table_path: the table with one row per job; none of these files need exist.
        study_path: Optuna's trials.
        log: the sweep's log.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.table_path, self.study_path, self.log = (
            self.path / name for name in ("results.csv", "study.db", "sweep.log")
        )

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_sweep(self) -> bool:
        """Whether the folder holds a sweep."""
        return (self.path / _NOTE).is_file()

    def write_note(self, words: list[str], varied: list[str], config: dict[str, Any]) -> None:
        """Record the words of a sweep's command, the keys that it varies, and the config that all jobs start from."""
        note = {"words": words, "varied": varied, "config": config}
        write_atomically(self.path / _NOTE, json.dumps(note, indent=2) + "\n")

    def note(self) -> dict[str, Any]:
        """Read the `words`, `varied` and `config` of the sweep."""
        return json.loads((self.path / _NOTE).read_text())

    def jobs(self) -> list[RunFolder]:
        """List the jobs that have begun, in the order of their numbers."""
        runs = [RunFolder(path) for path in self.path.iterdir() if path.is_dir()]
        jobs = [(job["job"], run.path.name, run) for run in runs if (job := run.job())]
        return [run for _, _, run in sorted(jobs, key=lambda job: job[:2])]

    def write_table(self, text: str) -> None:
        """Write the table."""
        write_atomically(self.table_path, text)

    def lock(self) -> AbstractContextManager[None]:
        """Lock the table, so that each process that writes it has seen the results of those before."""
        return hold_lock(self.path / _LOCK)
