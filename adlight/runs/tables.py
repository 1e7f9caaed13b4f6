"""The tables of a run's results: one row per test image, one per defect type."""

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adlight.types import Box, Prediction, Record, UserError

if TYPE_CHECKING:  # they take seconds: not for --help
    from pandas import DataFrame

    from adlight.detection.gathering import TestedImage
    from adlight.metrics.results import Results

COLUMNS = ("score", "threshold", "anomalous", "threshold_source", "pixel_threshold", "area", "boxes")
PREDICTIONS = ("path", "category", "defect", "label", *COLUMNS)
_SHARE = re.compile(r"(val/|pixel_)?(auroc|ap|aupro|f1_(?!\w*threshold)\w+|precision|recall)(_lower|_upper)?")
NUMBERS = ("epochs", "generator_steps", "seconds", "threshold", "pixel_threshold")  # of a run, beside its metrics
DEFECTS = ("category", "defect", "normal", "anomalous", "auroc", "ap", "recall_calibrated")


def parse_boxes(text: str) -> list[Box]:
    """Read the boxes of one image as `prediction_cells` writes them."""
    numbers = [tuple(map(int, box.split(","))) for box in text.split()]
    return [(left, top, right, bottom) for left, top, right, bottom in numbers]


def to_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Write rows as CSV, numbers at full precision and None as nothing."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows(rows)
    return file.getvalue()


def prediction_rows(records: list[Record], predictions: list["TestedImage"]) -> Iterator[tuple[Any, ...]]:
    """Give one row per test image, with the columns `PREDICTIONS`: predictions beside the truth."""
    for row in predictions:
        yield (*records[row.index][:3], row.label, *prediction_cells(row.prediction))


def prediction_cells(prediction: Prediction) -> tuple[Any, ...]:
    """Give the columns `COLUMNS` of one image; a box is `left,top,right,bottom`."""
    boxes = " ".join(",".join(map(str, box)) for box in prediction.boxes)
    cells = {**vars(prediction), "anomalous": int(prediction.anomalous), "boxes": boxes}
    return tuple(cells[name] for name in COLUMNS)


def defect_rows(results: "Results") -> Iterator[tuple[Any, ...]]:
    """Give one row per defect type, with the columns `DEFECTS`; None for what could not be computed."""
    for category, defects in results.defects.items():
        yield from ((category, name, *map(found.get, DEFECTS[2:])) for name, found in defects.items())


def check_results(content: dict[str, Any]) -> None:
    """Refuse JSON that is not what `Results.as_dict` gives: tables of categories, defects, pooled images, validation.

    Raises:
        ValueError, LookupError, AttributeError, TypeError: something else stands in place of a table or a number.
    """
    tables = {f"defects of {name}": of for name, of in (content.get("defects") or {}).items()}
    tables = {f"{name}, {defect}": table for name, of in tables.items() for defect, table in of.items()}
    tables |= content["categories"] | {name: content.get(name) or {} for name in ("pooled", "validation")}
    if not all(isinstance(table, dict) for table in tables.values()):
        raise ValueError("a table is missing in it")
    metrics = {name for table in content["categories"].values() for name in table} | set(NUMBERS)
    tables["the mean"] = {name: value for name, value in content.items() if name in metrics}
    for name, table in tables.items():
        for metric, value in table.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ValueError(f"{metric} of {name} is {value!r}, no number")
            is_share = _SHARE.fullmatch(metric) is not None
            if value is not None and (value < 0 or value > 1 if is_share else math.isinf(value)):
                raise ValueError(f"{metric} of {name} is {value!r}, out of range")


OPTIONAL: dict[str, Callable[[str], Any]] = {
    "anomalous": lambda text: bool(int(text)),
    "pixel_threshold": float,
    "area": float,
    "boxes": parse_boxes,
}


def read_predictions(path: Path) -> "DataFrame":
    """Read the table of the test images, numbers as numbers and boxes as lists.

    Raises:
        UserError: a column is missing, scores or thresholds are not finite, or labels other than 0 and 1.
    """
    import pandas

    types = {"category": str, "label": int, "score": float, "threshold": float}
    try:
        table = pandas.read_csv(path, dtype=str, keep_default_na=False, encoding_errors="surrogateescape").astype(types)
        for name in ("score", "threshold", "label"):
            value = table[name]
            wrong = table.index[
                ~(value.isin((0, 1)) if name == "label" else value.abs() < math.inf)
            ]  # NaN is not below
            if len(wrong):
                raise ValueError(f"{name} is {value[wrong[0]]} in line {wrong[0] + 2}")
        for name in set(OPTIONAL) & set(table):  # not in every table of version 0.1
            table[name] = table[name].map(OPTIONAL[name])
    except (ValueError, LookupError, OSError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"{path} is damaged ({type(error).__name__}: {line})") from error
    return table
