"""Published numbers, to stand beside ours: CSV files of a few known shapes."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adlight.reports.collect import Row, Run
from adlight.runs.config import CONF
from adlight.types import UserError

EXPERIMENTS = CONF.parent / "experiments"  # of a checkout; an installed package has none
CLASS_COLUMNS = ("category", "normal", "normal_digit", "normal_class")
METRICS = {  # a column's name or its ending -> the metric it is compared with
    **{name: name for name in ("auroc", "ap", "f1_max", "precision_at_f1_max", "recall_at_f1_max", "f1_calibrated")},
    **{name: name for name in ("pixel_auroc", "pixel_ap", "aupro")},
    **{"f1": "f1_max", "precision": "precision_at_f1_max", "recall": "recall_at_f1_max"},  # a paper's: the oracle's
}
SWEPT = {  # a sweep, its model and data set -> the experiment whose published numbers are about the same
    ("digits", "gan", "mnist"): "gan_mnist",
    ("categories", "mae", "mvtec"): "mae_mvtec",
}
SHAPES = (
    f"wanted is a column {', '.join(map(repr, CLASS_COLUMNS))} beside methods or metrics "
    "(auroc, ap, f1, precision, recall, ...), or a column 'mask_ratio' beside depths (E2D4, ...)"
)


class Reference(NamedTuple):
    """A published table.

    Attributes:
        path: where it was read from.
        column: the method that was taken, where there was a choice.
        classes: fractions by metric and by category or normal class.
        cells: AUROC by mask ratio and depth (`E2D4`).
    """

    path: Path
    column: str
    classes: dict[str, dict[str, float]]
    cells: dict[tuple[float, str], float]

    @property
    def shown(self) -> Path:
        """The path, without the way to our own experiments."""
        return self.path.relative_to(EXPERIMENTS.parent) if EXPERIMENTS in self.path.parents else self.path

    def value(self, run: Run, row: Row, metric: str) -> float | None:
        """The published number that a run's row is compared with.

        Of a mean, the mean over the very categories that the run has, if all of them were published.
        """
        if metric == "auroc" and self.cells:
            place = cell(run)
            return self.cells.get(place) if place and row == run.headline else None
        of = self.classes.get(metric, {})
        if row.level == "category":
            return of.get(row.category)
        names = list(run.about["categories"])
        return sum(of[name] for name in names) / len(names) if row.level == "mean" and set(names) <= set(of) else None


def cell(run: Run) -> tuple[float, str] | None:
    """A run's place in an ablation: its mask ratio, and its depth such as `E2D4`."""
    keys = ("model.mask_ratio", "model.network.encoder_depth", "model.network.decoder_depth")
    ratio, encoder, decoder = (run.settings.get(key) for key in keys)
    if not isinstance(ratio, int | float) or not isinstance(encoder, int) or not isinstance(decoder, int):
        return None
    return float(ratio), f"E{encoder}D{decoder}"


def find(named: Sequence[str] | None, found: Sequence[Run], column: str | None) -> dict[int, list[Reference]]:
    """References of each run, by its place.

    Args:
        named: CSV files or names of experiments, for all runs; None takes what each run's own experiment expects.
        found: the runs.
        column: method to take of tables with several.

    Raises:
        UserError: a file is missing or of no known shape.
    """
    if named is not None:
        given = [read(path_of(name), column) for name in named]
        return dict.fromkeys(range(len(found)), given)
    chosen = [experiments(run) for run in found]
    tables: dict[str, list[Reference]] = {}
    for name in {name for names in chosen for name in names if (EXPERIMENTS / name / "expected.csv").is_file()}:
        try:
            tables[name] = [read(EXPERIMENTS / name / "expected.csv", column)]
        except UserError:
            if column is not None:  # asked for; otherwise a table of another shape is passed over
                raise
    return {i: [table for name in names for table in tables.get(name, [])] for i, names in enumerate(chosen)}


def experiments(run: Run) -> list[str]:
    """Names under which numbers may have been published for a run."""
    names = [str(run.choices.get(group)) for group in ("sweep", "experiment")]
    if not isinstance(run.settings.get("dataset.category"), list):  # nobody has published a choice of categories
        names.append(SWEPT.get((names[0], run.model, run.dataset), ""))
    return [name for name in dict.fromkeys(names) if name]


def path_of(name: str) -> Path:
    """A file, or the expected numbers of an experiment."""
    path, expected = Path(name).expanduser(), EXPERIMENTS / name / "expected.csv"
    return expected if not path.is_file() and expected.is_file() else path


def read(path: Path, column: str | None = None) -> Reference:
    """Read a published table; percent become fractions.

    Args:
        path: the CSV file.
        column: the method or metric to take; None takes all metrics or, of methods, the last: the paper's own.

    Raises:
        UserError: no such file, not of a known shape, or a cell that is no number.
    """
    columns, rows = table_of(path)
    key = next((name for name in (*CLASS_COLUMNS, "mask_ratio") if name in columns), "")
    values = [name for name in columns if name != key]
    if key == "mask_ratio":
        values = [name for name in values if re.fullmatch(r"E\d+D\d+", name)]
    elif column is not None and column not in values:
        raise UserError(f"reference {path} has no column {column!r}: there are {', '.join(values)}")
    elif column is not None:
        values = [column]
    else:
        values = [name for name in values if name in METRICS] or values[-1:]
    if not key or not values or not rows:
        raise UserError(f"reference {path} has the columns {', '.join(columns) or 'none'}: {SHAPES}")
    if len({row[key] for row in rows}) < len(rows):
        raise UserError(f"reference {path} has several rows for the same {key}: there must be one")
    table = {name: {str(row[key]): number(path, row, key, name) for row in rows} for name in values}
    known = {name: {at: value for at, value in of.items() if value is not None} for name, of in table.items()}
    if key == "mask_ratio":
        ratios = {str(row[key]): number(path, row, key, key) or 0.0 for row in rows}
        return Reference(path, "", {}, {(ratios[at], name): v for name, of in known.items() for at, v in of.items()})
    scale = 100 if max((value for of in known.values() for value in of.values()), default=0) > 1.5 else 1
    classes = {metric_of(name): {at: value / scale for at, value in of.items()} for name, of in known.items()}
    return Reference(path, values[0] if len(values) == 1 else "", classes, {})


def table_of(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """The columns and rows of a CSV file."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            return list(reader.fieldnames or []), rows
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"reference {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def metric_of(column: str) -> str:
    """The metric that a column's name says or ends in, AUROC if it names a method."""
    endings = [name for name in METRICS if f"_{column}".endswith(f"_{name}")]
    return METRICS[max(endings, key=len)] if endings else "auroc"


def number(path: Path, row: dict[str, Any], key: str, name: str) -> float | None:
    """A cell's number, None where it is empty."""
    text = (row.get(name) or "").strip()
    try:
        return float(text) if text else None
    except ValueError:
        raise UserError(f"reference {path}: {text!r} in column {name!r} of row {row[key]!r} is no number") from None
