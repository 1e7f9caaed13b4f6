"""The tables of a run's results: one row per test image, one per defect type."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from adlight.types import Prediction, Record

if TYPE_CHECKING:  # they take seconds: not for --help
    from adlight.detection.module import TestedImage
    from adlight.metrics.results import Results

COLUMNS = ("score", "threshold", "anomalous", "threshold_source", "pixel_threshold", "area", "boxes")
PREDICTIONS = ("path", "category", "defect", "label", *COLUMNS)
DEFECTS = ("category", "defect", "normal", "anomalous", "auroc", "ap", "recall_calibrated")


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
        ValueError, LookupError, AttributeError, TypeError: something else stands in a table's place.
    """
    defects = [table for of in (content.get("defects") or {}).values() for table in of.values()]
    others = [content.get(name) or {} for name in ("pooled", "validation")]
    if not all(isinstance(table, dict) for table in (*content["categories"].values(), *defects, *others)):
        raise ValueError("a table is missing in it")
