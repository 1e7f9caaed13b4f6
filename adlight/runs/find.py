"""Find run folders."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from adlight.runs.config import difference
from adlight.runs.federation import FederationFolder
from adlight.runs.folder import RunFolder
from adlight.runs.sweep_folder import SweepFolder
from adlight.types import UserError


def find_runs(places: Sequence[str]) -> list[RunFolder]:
    """Find run folders at or below `places`, in natural sort order.

    What lies in a run's own folder (evaluations, predictions) belongs to that run: it is found where it is named.

    Raises:
        UserError: a place, folder or glob, does not exist or matches nothing.
    """
    found = set[Path]()
    for place in places:
        path = Path(place).expanduser()
        matches = [path] if path.exists() else list(map(Path, glob.glob(str(path), recursive=True)))
        if not matches:
            raise UserError(f"runs={place}: there is no such folder, and as a glob it matches nothing")
        for match in matches:
            for folder, below, _ in os.walk(match):
                is_run = RunFolder(folder).is_run and not FederationFolder(folder).is_federation  # its sites are
                below[:] = [] if is_run else [name for name in below if not name.startswith(".")]
                found |= {Path(folder)} if is_run else set()
    return [RunFolder(path) for path in sorted(found, key=natural_key)]


def find_studies(places: Sequence[str]) -> list[SweepFolder]:
    """Find sweeps at or below `places` that are searches, in natural sort order; in a run there is none."""
    folders = {Path(run.path).parent for run in find_runs(places)}
    folders |= {Path(place).expanduser() for place in places}
    return [sweep for path in sorted(folders, key=natural_key) if (sweep := SweepFolder(path)).study_path.is_file()]


def natural_key(path: Path) -> list[tuple[float, str]]:
    """Sort paths by their text, and by value where there are numbers: 0.75 before 0.8, 9 before 10."""
    parts = re.split(r"(\d+(?:\.\d+)?)", str(path))
    return [(float(part), part) if i % 2 else (0.0, part) for i, part in enumerate(parts)]


def find_unfinished(runs: Sequence[RunFolder], config: DictConfig) -> RunFolder | None:
    """Find the newest unfinished run with a checkpoint and the same config."""
    unfinished = [run for run in runs if run.is_run and run.can_resume and not run.is_finished]
    matches = [run for run in unfinished if _has_config(run, config)]
    return max(matches, key=lambda run: run.last_change, default=None)


def _has_config(run: RunFolder, config: DictConfig) -> bool:
    try:
        return not difference(run.read_config(), config)
    except UserError as error:
        print(f"not resumed: {error}", flush=True)
        return False
