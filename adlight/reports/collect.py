"""Runs as rows: what each measured, in what it differs from the others, and which differ in their seed alone."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from adlight import runs
from adlight.types import UserError

Prediction = tuple[int, float, float]  # label, score, threshold
Interval = tuple[float, float]  # both ends
COUNTS = ("normal", "anomalous")
CLASS_KEYS = ("dataset.category", "dataset.normal")  # which images a run is about
NO_SETTINGS = ("resume", "run_dir", "run")  # where a run lies, not what it does
MISSING = "(not set)"


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
        label: in what it differs from the other runs of its model and data set, in words.
    """

    path: Path
    state: str
    name: str = ""
    reason: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    predictions: dict[str, list[Prediction]] = field(default_factory=dict)
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

    def rows(self) -> list[Row]:
        """A row a category and, of several, their mean and the pooled images."""
        if self.state != "finished":
            return []
        tables = {name: numbers(table) for name, table in self.about["categories"].items()}
        found = [self.row("category", name, table) for name, table in tables.items()]
        if len(found) > 1:
            known = [name for table in tables.values() for name in table if name not in COUNTS]
            mean = {name: value for name, value in numbers(self.about).items() if name in known}
            found.append(self.row("mean", f"mean of {len(tables)}", mean))
            if pooled := numbers(self.about.get("pooled")):
                found.append(self.row("pooled", "pooled", pooled))
        return found

    def row(self, level: str, category: str, metrics: dict[str, float]) -> Row:
        """One row, with the intervals and the threshold that belong to it."""
        of_run = self.about.get("intervals")
        of_run = of_run if isinstance(of_run, dict) else {}
        tables = {"category": (of_run.get("categories") or {}).get(category), "pooled": of_run.get("pooled")}
        own = tables.get(level, of_run)
        names = [category] if level == "category" else list(self.predictions)
        used = {row[2] for name in names for row in self.predictions.get(name, [])}
        return Row(level, category, metrics, intervals(own), used.pop() if len(used) == 1 else None)

    def headline(self) -> Row | None:
        """The row that stands for the run: the mean, or its only category."""
        rows = self.rows()
        return next((row for row in rows if row.level == "mean"), rows[0] if rows else None)


def numbers(table: Any) -> dict[str, float]:
    """The finite numbers of a table, by name."""
    found = table.items() if isinstance(table, dict) else ()
    return {name: float(value) for name, value in found if is_number(value)}


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def intervals(table: Any) -> dict[str, Interval]:
    """The pairs of numbers in a table, by name."""
    found = table.items() if isinstance(table, dict) else ()
    return {
        name: (float(ends[0]), float(ends[1]))
        for name, ends in found
        if isinstance(ends, list) and len(ends) == 2 and all(map(is_number, ends))
    }


def collect(places: Sequence[str]) -> list[Run]:
    """Read all runs that folders or globs name.

    Raises:
        UserError: there are none.
    """
    found = [run for folder in runs.find_runs(places) if (run := read(folder)) is not None]
    if not found:
        raise UserError(
            f"no runs in {', '.join(places)}: a run's folder holds .hydra/config.yaml, as adlight.train leaves it"
        )
    for run in found:
        run.name = short_name(run.path, [other.path for other in found])
    for group in grouped(found, lambda run: (run.model, run.dataset)):
        differing = differences(group)
        names = short_keys(list(differing))
        for i, run in enumerate(group):
            words = [f"{names[key]}={shown(values[i])}" for key, values in differing.items()]
            run.label = ", ".join(words[:6]) + (f" and {len(words) - 6} more" if len(words) > 6 else "")
    return found


def read(folder: Path) -> Run | None:
    """Read a run's folder; None where it is something else that Hydra left behind."""
    run = Run(folder, "finished")
    try:
        run.settings, run.choices = runs.settings(folder)
    except UserError as error:
        if "holds no training" in str(error):
            return None
        return Run(folder, "damaged", reason=str(error))
    try:
        results = runs.read_results(folder)
    except UserError as error:
        run.state, run.reason = "damaged", str(error)
        return run
    if results is None:
        why = runs.failure(folder)
        run.state, run.reason = ("failed", why) if why else ("unfinished", "")
        return run
    run.about = results
    try:
        run.predictions = runs.read_predictions(folder)
    except UserError as error:
        run.reason = str(error)
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


def shown(value: Any) -> str:
    """A setting's value as it is written in a config."""
    return {True: "true", False: "false", None: "null"}.get(value, str(value)) if not is_number(value) else str(value)


def differences(found: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings that differ between runs, by key: a value a run, in their order."""
    known = [run.settings for run in found if run.settings]
    keys = dict.fromkeys(key for settings in known for key in settings if key not in NO_SETTINGS)
    values = {key: [run.settings.get(key, MISSING) for run in found] for key in keys}
    return {
        key: row
        for key, row in values.items()
        if len({repr(value) for run, value in zip(found, row, strict=True) if run.settings}) > 1
    }


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """The last word of each dotted key, or all of it where two end in the same."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: word if last.count(word) == 1 else key for key, word in zip(keys, last, strict=True)}


def grouped(found: Iterable[Run], key: Any) -> list[list[Run]]:
    """Runs with the same key together, in the order of their first ones."""
    groups: dict[Any, list[Run]] = {}
    for run in found:
        groups.setdefault(key(run), []).append(run)
    return list(groups.values())


def alike(found: Iterable[Run], *ignored: str) -> list[list[Run]]:
    """Finished runs whose settings agree but for some keys, together."""

    def rest(run: Run) -> tuple[Any, ...]:
        keys = sorted(run.settings.keys() - {*ignored, *NO_SETTINGS})
        return run.model, run.dataset, *((key, repr(run.settings[key])) for key in keys)

    return grouped((run for run in found if run.state == "finished"), rest)


def common_label(group: Sequence[Run], groups: Sequence[Sequence[Run]], *ignored: str) -> str:
    """What sets a group of like runs apart from the other groups: its model and the settings that differ."""
    several = {(run.model, run.dataset) for one in groups for run in one}
    datasets = {dataset for _, dataset in several}
    first = group[0]
    peers = [one[0] for one in groups if (one[0].model, one[0].dataset) == (first.model, first.dataset)]
    differing = {key: row for key, row in differences(peers).items() if key not in ignored}
    names, place = short_keys(list(differing)), peers.index(first)
    words = [f"{names[key]}={shown(row[place])}" for key, row in differing.items()][:4]
    head = f"{first.model} on {first.dataset}" if len(datasets) > 1 else first.model
    return ", ".join([head, *words]) if len(several) > 1 or not words else ", ".join(words)


class OverSeeds(NamedTuple):
    """Mean and sample standard deviation over runs that differ in their seed alone."""

    label: str
    seeds: list[str]
    category: str
    metrics: dict[str, tuple[float, float]]


def over_seeds(found: Sequence[Run]) -> list[OverSeeds]:
    """A row a category (and mean) of each group of runs that differ in their seed alone."""
    groups = alike(found, "seed")
    table = []
    for group in groups:
        seeds = [shown(run.settings.get("seed")) for run in group]
        if len(set(seeds)) < 2 or len(set(seeds)) < len(seeds):  # the same run twice is no second seed
            continue
        label = common_label(group, groups, "seed")
        lines = [{row.category: row.metrics for row in run.rows()} for run in group]
        for category in lines[0]:
            tables = [line[category] for line in lines if category in line]
            names = [name for name in tables[0] if name not in COUNTS and all(name in table for table in tables)]
            if len(tables) == len(group):
                values = {name: [table[name] for table in tables] for name in names}
                spread = {name: (fmean(of), stdev(of)) for name, of in values.items()}
                table.append(OverSeeds(label, seeds, category, spread))
    return table
