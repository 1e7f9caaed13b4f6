"""The tables of a run's results: one row per test image, one per defect type."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adlight.types import Record

if TYPE_CHECKING:  # they take seconds: not for --help
    from pandas import DataFrame

    from adlight.detection.module import TestedImage
    from adlight.metrics.results import Results

PREDICTIONS = (
    *("path", "category", "defect", "label", "score", "threshold", "anomalous"),
    *("threshold_source", "pixel_threshold", "area", "boxes"),
)
DEFECTS = ("category", "defect", "normal", "anomalous", "auroc", "ap", "recall_calibrated")


def to_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Write rows as CSV, numbers at full precision and None as nothing."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows(rows)
    return file.getvalue()


def prediction_rows(records: list[Record], predictions: list["TestedImage"]) -> Iterator[tuple[Any, ...]]:
    """Give one row per test image, with the columns `PREDICTIONS`: the detector's answers beside the truth."""
    for row in predictions:
        one = row.prediction
        boxes = " ".join(",".join(map(str, box)) for box in one.boxes)
        decision = row.label, one.score, one.threshold, int(one.anomalous)
        yield (*records[row.index][:3], *decision, one.threshold_source, one.pixel_threshold, one.area, boxes)


def defect_rows(results: "Results") -> Iterator[tuple[Any, ...]]:
    """Give one row per defect type, with the columns `DEFECTS`; None for what could not be computed."""
    for category, defects in results.defects.items():
        yield from ((category, name, *map(found.get, DEFECTS[2:])) for name, found in defects.items())


def read_predictions(path: Path) -> "DataFrame":
    """Read the rows of `prediction_rows`, at full precision.

    Raises:
        ValueError: something else stands where a number should.
        LookupError: a column is missing.
    """
    import pandas

    numbers = {"label": int, "score": float, "threshold": float}
    return pandas.read_csv(path, dtype=str, keep_default_na=False).astype({"category": str} | numbers)
