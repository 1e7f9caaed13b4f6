"""Runs as pandas frames: what each is, what it measured, and what it answered for each test image."""

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
from adlight.runs.hydra_folder import OlderRun
from adlight.types import UserError

DAMAGE = (ValueError, LookupError, TypeError, AttributeError, OSError)  # what files of any content may raise
_TEXT = ["model", "dataset", "level", "category", "sweep", "experiment", "categories", "error", "log"]
_INTEGERS = ["normal_images", "anomalous_images", "num_categories", "epochs", "generator_steps"]


@dataclass(frozen=True)
class Runs:
    """Collected runs. In each frame, the column `name` says which run a row is about.

    Attributes:
        results: one row per run and `category`, with the columns `rows.HEAD`, metrics as fractions (`auroc_lower` and
            `auroc_upper`: ends of the 95 % interval), `rows.TAIL` and `config.<setting>` as text. `level` is
            `category`, `mean` (macro mean over the run's categories) or `pooled` (their images mixed). `headline` marks
            the row that stands for the run: the mean, its only category, or the one row of a run without results.
        predictions: one row per test image, as in the runs' own tables.
        defects: one row per run, category and defect type, against all normal images of the category.
        published: one row per published number that a run is compared with (see `reference.compare`).
    """

    results: pd.DataFrame
    predictions: pd.DataFrame
    defects: pd.DataFrame
    published: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def headlines(self) -> pd.DataFrame:
        """The rows of `results` that stand for a run each."""
        return self.results[self.results["headline"]]

    @property
    def states(self) -> str:
        """How many runs there are in which state."""
        counts = self.headlines["status"].value_counts(sort=False)
        return ", ".join(f"{count} {status}" for status, count in counts.items())

    @property
    def problems(self) -> dict[str, str]:
        """What went wrong, by run: its status, the error and its log."""
        runs = self.headlines[(self.headlines["status"] != "finished") | self.headlines["error"].notna()]
        runs = runs[["name", "status", "error", "log"]].fillna("")
        is_told = (runs["log"] != "") & runs["status"].isin(("failed", "unfinished"))
        logs = runs["log"].map(" (log: {})".format).where(is_told, "")
        unfinished = (runs["status"] == "unfinished") & (runs["error"] == "")
        runs["error"] = runs["error"].mask(unfinished, "It runs, or was stopped or killed")
        ends = runs["status"].map({"damaged": ", because "}).fillna(". ")
        return dict(zip(runs["name"], (runs["status"] + ends + runs["error"] + logs).str.strip(), strict=True))


def collect(places: Sequence[str]) -> Runs:
    """Read all runs that folders or globs name.

    Raises:
        UserError: there are none.
    """
    rows, tables, defects = list[dict[str, Any]](), [pd.DataFrame()], list[dict[str, Any]]()
    for run in find_runs(places):
        try:
            found, table, of_defects = _read(run)
        except OlderRun as error:
            found, table, of_defects = [status_row(run) | {"status": "of 0.1", "error": str(error)}], None, []
        except (UserError, *DAMAGE) as error:
            line = str(error) if isinstance(error, UserError) else f"{run}: {type(error).__name__}: {error}"
            row = status_row(run) | {"status": "damaged", "error": " ".join(line.split())}
            found, table, of_defects = [row], None, []
        rows += found
        tables += [] if table is None else [table.assign(name=str(run))]
        defects += [{"name": str(run), **row} for row in of_defects]
    if not rows:
        raise UserError(f"no runs in {', '.join(places)}: adlight.train makes run folders")
    names = _short_names(list(dict.fromkeys(row["folder"] for row in rows)))
    frames = [_order_columns(pd.DataFrame(rows)), pd.concat(tables, ignore_index=True), pd.DataFrame(defects)]
    return Runs(*(of.assign(name=of["name"].map(names)) if len(of) else of for of in frames))


def _read(run: RunFolder) -> tuple[list[dict[str, Any]], pd.DataFrame | None, list[dict[str, Any]]]:
    """Read a run's rows, its predictions and its defects; no rows of what else Hydra leaves behind.

    Raises:
        UserError: it cannot be read.
    """
    config = run.settings()
    if config is None:
        if run.has_results:
            raise UserError(f"{run.config_path} is damaged: it has no model")
        return [], None, []
    found, content = read_results(run)
    try:
        table = run.predictions()
    except UserError as error:  # its numbers are shown all the same
        table, found = None, [row | {"status": "damaged", "error": str(error)} for row in found]
    return [setting_row(*config) | row for row in found], table, defect_rows(content)


def config_columns(frame: pd.DataFrame) -> list[str]:
    """List the columns of settings."""
    return [name for name in frame if name.startswith(CONFIG)]


def metric_columns(results: pd.DataFrame) -> list[str]:
    """List the columns of metrics, without the ends of their intervals."""
    others = {*HEAD, *TAIL, *(name for name in results if name.startswith((CONFIG, REFERENCE)))}
    return [name for name in results if name not in others and not name.endswith(("_lower", "_upper"))]


def _order_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """Bring columns into the order HEAD, metrics, TAIL, settings; those of HEAD and TAIL are all there."""
    names = sorted(metric_columns(frame), key=[*METRICS, *metric_columns(frame)].index)
    metrics = [one for name in names for one in (name, f"{name}_lower", f"{name}_upper") if one in frame]
    types = dict.fromkeys(_TEXT, object) | dict.fromkeys(_INTEGERS, "Int64")  # also where nothing is known
    return frame.reindex(columns=[*HEAD, *metrics, *TAIL, *config_columns(frame)]).astype(types)


def _short_names(folders: Sequence[str]) -> dict[str, str]:
    """Shorten paths by the folders that all of them share."""
    shared = os.path.commonpath(map(os.path.abspath, folders))
    names = {folder: os.path.relpath(folder, shared) for folder in folders}
    return {folder: Path(shared).name if name == "." else name for folder, name in names.items()}
