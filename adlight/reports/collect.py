"""Collect runs in pandas frames: settings, results, and predictions for test images."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from adlight.reports.rows import (
    CONFIG,
    HEAD,
    METRICS,
    REFERENCE,
    TAIL,
    defect_rows,
    read_results,
    setting_row,
    status_row,
)
from adlight.runs.find import find_runs
from adlight.runs.folder import RunFolder
from adlight.types import UserError

READ_ERRORS = (ValueError, LookupError, TypeError, AttributeError, OSError)  # raised by damaged files
_TEXT = ["model", "dataset", "level", "category", "sweep", "experiment", "categories", "error", "log"]
_INTEGERS = ["normal_images", "anomalous_images", "num_categories", "epochs", "generator_steps"]


@dataclass(frozen=True)
class Runs:
    """Collected runs. The column `name` of each frame is the name of the run.

    Attributes:
        results: one row per run and `category`, with the columns `rows.HEAD`, metrics as fractions (`auroc_lower` and
            `auroc_upper` are the ends of the 95 % interval), `rows.TAIL` and `config.<setting>` as text. `level` is
            `category`, `mean` (macro mean over the run's categories) or `pooled` (all images of the run). `headline`
            marks the row that stands for the whole run: the mean, the only category, or the only row of a run without
            results.
        predictions: one row per test image, with the columns of the runs' own tables.
        defects: one row per run, category and defect type, evaluated against all normal images of the category.
        published: one row per published number to compare a run with, see `reference.compare`.
    """

    results: pd.DataFrame
    predictions: pd.DataFrame
    defects: pd.DataFrame
    published: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def headlines(self) -> pd.DataFrame:
        """The rows of `results` that stand for a whole run."""
        return self.results[self.results["headline"]]

    @property
    def states(self) -> str:
        """The number of runs in each state, as text."""
        counts = self.headlines["status"].value_counts(sort=False)
        return ", ".join(f"{count} {status}" for status, count in counts.items())

    @property
    def problems(self) -> dict[str, str]:
        """Status, error and log of each run that is not finished or has an error, by name."""
        runs = self.headlines[(self.headlines["status"] != "finished") | self.headlines["error"].notna()]
        problems = {}
        for name, status, error, log in runs[["name", "status", "error", "log"]].fillna("").to_numpy():
            reason = "It is running, or was stopped or killed" if status == "unfinished" and not error else error
            place = f" (log: {log})" if log and status in ("failed", "unfinished") else ""
            problems[name] = f"{status}{', because ' if status == 'damaged' else '. '}{reason}{place}".strip()
        return problems


def collect(places: Sequence[str]) -> Runs:
    """Read all runs at or below folders or globs, or raise a UserError; a damaged run gets a row with its error."""
    rows, tables, defects = list[dict[str, Any]](), [pd.DataFrame()], list[dict[str, Any]]()
    for run in find_runs(places):
        try:
            run_rows, table, run_defects = _read_run(run)
        except (UserError, *READ_ERRORS) as error:
            line = str(error) if isinstance(error, UserError) else f"{run}: {type(error).__name__}: {error}"
            row = status_row(run) | {"status": "damaged", "error": " ".join(line.split())}
            run_rows, table, run_defects = [row], None, []
        rows += run_rows
        tables += [] if table is None else [table.assign(name=str(run))]
        defects += [{"name": str(run), **row} for row in run_defects]
    if not rows:
        raise UserError(f"no runs in {', '.join(places)}: adlight train makes run folders")
    names = _shorten_paths(list(dict.fromkeys(row["folder"] for row in rows)))
    frames = [_order_columns(pd.DataFrame(rows)), pd.concat(tables, ignore_index=True), pd.DataFrame(defects)]
    return Runs(*(frame.assign(name=frame["name"].map(names)) if len(frame) else frame for frame in frames))


def _read_run(run: RunFolder) -> tuple[list[dict[str, Any]], pd.DataFrame | None, list[dict[str, Any]]]:
    """Read a run's rows, predictions and defects, or raise a UserError; empty for folders of Hydra that are no runs."""
    config = run.settings()
    if config is None:
        if run.has_results:
            raise UserError(f"{run.config_path} is damaged: it has no model")
        return [], None, []
    rows, content = read_results(run)
    try:
        table = run.predictions()
    except UserError as error:  # the results can still be shown
        table, rows = None, [row | {"status": "damaged", "error": str(error)} for row in rows]
    return [setting_row(*config) | row for row in rows], table, defect_rows(content)


def config_columns(frame: pd.DataFrame) -> list[str]:
    """List the columns of settings."""
    return [name for name in frame if name.startswith(CONFIG)]


def metric_columns(results: pd.DataFrame) -> list[str]:
    """List the columns of metrics, without the ends of their intervals."""
    others = {*HEAD, *TAIL, *(name for name in results if name.startswith((CONFIG, REFERENCE)))}
    return [name for name in results if name not in others and not name.endswith(("_lower", "_upper"))]


def _order_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """Order columns as HEAD, metrics, TAIL, settings, and add missing columns of HEAD and TAIL."""
    names = sorted(metric_columns(frame), key=[*METRICS, *metric_columns(frame)].index)
    metrics = [column for name in names for column in (name, f"{name}_lower", f"{name}_upper") if column in frame]
    types = dict.fromkeys(_TEXT, object) | dict.fromkeys(_INTEGERS, "Int64")  # for empty columns too
    return frame.reindex(columns=[*HEAD, *metrics, *TAIL, *config_columns(frame)]).astype(types)


def _shorten_paths(folders: Sequence[str]) -> dict[str, str]:
    """Make paths relative to the deepest folder that all of them share."""
    shared = os.path.commonpath(map(os.path.abspath, folders))
    names = {folder: os.path.relpath(folder, shared) for folder in folders}
    return {folder: Path(shared).name if name == "." else name for folder, name in names.items()}
