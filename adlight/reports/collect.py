"""Runs as rows: what each measured, in what it differs from the others, and which differ in their seed alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from adlight.runs.find import find_runs
from adlight.runs.folder import RunFolder
from adlight.types import UserError

Prediction = tuple[int, float, float]  # label, score, threshold
Interval = tuple[float, float]  # both ends
COUNTS = ("normal", "anomalous")
THRESHOLDS = ("threshold", "pixel_threshold")
CLASS_KEYS = ("dataset.category", "dataset.normal")  # which images a run is about


class Row(NamedTuple):
    """One line of the result table.

    Attributes:
        level: `category`, `mean` (macro mean over the run's categories) or `pooled` (their images mixed).
        metrics: fractions by name, and the counts `normal` and `anomalous`.
        intervals: both ends of 95 % bootstrap intervals, by metric.
        threshold: what the scores were compared with; None where that differs within the row.
    """

    level: str
    category: str
    metrics: dict[str, float]
    intervals: dict[str, Interval]
    threshold: float | None


@dataclass
class Run:
    """A run folder's content.

    Attributes:
        state: `finished`, `unfinished`, `failed` or `damaged`.
        reason: of the last two, in a line; of a finished run, what could not be read of it.
        settings: values by dotted key.
        choices: the config groups it was composed of.
        about: `metrics.json` as it is.
        predictions: of each test image, by category.
        varying: the settings in which it differs from other runs of its model and data set, by key.
        label: the same in words.
    """

    path: Path
    state: str
    name: str = ""
    reason: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    predictions: dict[str, list[Prediction]] = field(default_factory=dict)
    varying: dict[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def model(self) -> str:
        """The chosen model's name."""
        return str(self.choices.get("model") or self.settings.get("model._target_", "").rpartition(".")[2])

    @property
    def dataset(self) -> str:
        """The chosen data set's name."""
        return str(self.choices.get("dataset") or self.settings.get("dataset.source._target_", "").rpartition(".")[2])

    @property
    def title(self) -> str:
        """Name and label."""
        return f"{self.name} ({self.label})" if self.label else self.name

    @cached_property
    def rows(self) -> list[Row]:
        """A row a category and, of several, their mean and the pooled images."""
        if self.state != "finished":
            return []
        tables = {name: numbers(table) for name, table in self.about["categories"].items()}
        found = [self.row("category", name, table) for name, table in tables.items()]
        if len(found) > 1:
            known = [name for table in tables.values() for name in table if name not in (*COUNTS, *THRESHOLDS)]
            mean = {name: value for name, value in numbers(self.about).items() if name in known}
            found.append(self.row("mean", f"mean of {len(tables)}", mean))
            if pooled := numbers(self.about.get("pooled")):
                found.append(self.row("pooled", "pooled", pooled))
        return found

    @cached_property
    def defects(self) -> list[tuple[str, str, dict[str, float]]]:
        """Category, defect type and its metrics, against all normal images of the category."""
        tables = self.about.get("defects")
        found = tables.items() if isinstance(tables, dict) else ()
        named = [(name, table) for name, table in found if isinstance(table, dict)]
        return [(name, defect, numbers(of)) for name, table in named for defect, of in table.items()]

    def row(self, level: str, category: str, table: dict[str, float]) -> Row:
        """One row, with the intervals and the threshold that belong to it."""
        names = [category] if level == "category" else list(self.predictions)
        used = {row[2] for name in names for row in self.predictions.get(name, [])}
        metrics = {name: value for name, value in table.items() if name not in THRESHOLDS and not is_end(name, table)}
        return Row(level, category, metrics, intervals(table), used.pop() if len(used) == 1 else None)

    @cached_property
    def headline(self) -> Row | None:
        """The row that stands for the run: the mean, or its only category."""
        return next((row for row in self.rows if row.level == "mean"), self.rows[0] if self.rows else None)


def numbers(table: Any) -> dict[str, float]:
    """The finite numbers of a table, by name."""
    found = table.items() if isinstance(table, dict) else ()
    return {name: float(value) for name, value in found if is_number(value)}


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_end(name: str, table: dict[str, float]) -> bool:
    """Whether a name such as `auroc_lower` is the end of another metric's interval."""
    metric, _, end = name.rpartition("_")
    return end in ("lower", "upper") and metric in table


def intervals(table: dict[str, float]) -> dict[str, Interval]:
    """The intervals that stand beside their metrics as `<metric>_lower` and `<metric>_upper`."""
    both = {name: (f"{name}_lower", f"{name}_upper") for name in table}
    return {name: (table[low], table[high]) for name, (low, high) in both.items() if low in table and high in table}


def collect(places: Sequence[str]) -> list[Run]:
    """Read all runs that folders or globs name.

    Raises:
        UserError: there are none.
    """
    found = [run for folder in find_runs(places) if (run := read(folder)) is not None]
    if not found:
        raise UserError(
            f"no runs in {', '.join(places)}: a run's folder holds .hydra/config.yaml, as adlight.train leaves it"
        )
    for run in found:
        run.name = short_name(run.path, [other.path for other in found])
    return found


def read(folder: RunFolder) -> Run | None:
    """Read a run's folder; None where it is something else that Hydra left behind."""
    run = Run(folder.path, "finished")
    try:
        found = folder.settings()
    except UserError as error:
        return Run(folder.path, "damaged", reason=str(error))
    if found is None:
        return None
    run.settings, run.choices = found
    try:
        results = folder.read_results()
    except UserError as error:
        run.state, run.reason = "damaged", str(error)
        return run
    if results is None:
        why = folder.failure()
        log = f" (log: {folder.log})" if folder.log.exists() else ""
        run.state, run.reason = ("failed", why + log) if why else ("unfinished", "")
        return run
    run.about = results
    try:
        table = folder.predictions()
    except UserError as error:
        run.reason = str(error)
        return run
    for category, rows in () if table is None else table.groupby("category", sort=False):
        run.predictions[category] = list(zip(rows["label"], rows["score"], rows["threshold"], strict=True))
    return run


def short_name(path: Path, others: Sequence[Path]) -> str:
    """A path without the folders that all of them share."""
    shared = 0
    if len(others) > 1:
        for step in zip(*(other.parts for other in others), strict=False):
            if len(set(step)) > 1:
                break
            shared += 1
    return "/".join(path.parts[shared:]) if shared and shared < len(path.parts) else path.name
