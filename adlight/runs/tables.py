"""The tables of a run's results, with a row per test image, per defect type, or per calibration image."""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adlight.runs.files import read_if_exists, write_atomically
from adlight.types import Box, Record, UserError

if TYPE_CHECKING:  # they take seconds: not for --help
    from pandas import DataFrame

    from adlight.detection.gathering import TestedImage
    from adlight.metrics.results import Results
    from adlight.metrics.thresholds import Calibration

OBJECTIVE = "val/auroc"  # the metric for choosing among runs, which must not come from the test split
_CALIBRATION, _TRAINED = "calibration.csv", "trained.csv"
COLUMNS = ("score", "threshold", "anomalous", "threshold_source", "pixel_threshold", "area", "boxes")
PREDICTIONS = ("path", "category", "defect", "label", *COLUMNS)
NUMBERS = ("epochs", "generator_steps", "seconds", "threshold", "pixel_threshold")  # of a whole run
DEFECTS = ("category", "defect", "normal", "anomalous", "auroc", "ap", "recall_calibrated")


def to_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Format rows as CSV, numbers at full precision and None as an empty cell."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows(rows)
    return file.getvalue()


def prediction_rows(records: list[Record], predictions: list["TestedImage"]) -> Iterator[tuple[Any, ...]]:
    """Yield a row per test image, with the columns `PREDICTIONS`."""
    for row in predictions:
        yield (*records[row.index][:3], row.label, *prediction_cells(row.prediction.as_dict()))


def prediction_cells(values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a prediction's cells in the columns `COLUMNS`; a box is `left,top,right,bottom`."""
    boxes = " ".join(",".join(map(str, box)) for box in values["boxes"])
    cells = {**values, "anomalous": int(values["anomalous"]), "boxes": boxes}
    return tuple(cells[name] for name in COLUMNS)


def parse_boxes(text: str) -> list[Box]:
    """Parse the boxes of an image as `prediction_cells` formats them."""
    numbers = [tuple(map(int, box.split(","))) for box in text.split()]
    return [(left, top, right, bottom) for left, top, right, bottom in numbers]


def read_predictions(path: Path) -> "DataFrame":
    """Read the table of test images, with parsed numbers and boxes; raise a UserError if it is damaged."""
    import pandas

    types = {"label": int, "anomalous": int, **dict.fromkeys(("score", "threshold", "pixel_threshold", "area"), float)}
    try:
        table = pandas.read_csv(path, dtype=str, keep_default_na=False, encoding_errors="surrogateescape").astype(types)
        for name in ("score", "threshold", "label"):
            column = table[name]
            is_valid = column.isin((0, 1)) if name == "label" else column.abs() < math.inf  # False for NaN
            if len(wrong := table.index[~is_valid]):
                raise ValueError(f"{name} is {column[wrong[0]]} in line {wrong[0] + 2}")
        table["anomalous"], table["boxes"] = table["anomalous"].astype(bool), table["boxes"].map(parse_boxes)
    except (ValueError, LookupError, OSError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"{path} is damaged ({type(error).__name__}: {line})") from error
    return table


def defect_rows(results: "Results") -> Iterator[tuple[Any, ...]]:
    """Yield a row per defect type, with the columns `DEFECTS`; None for what could not be computed."""
    for category, defects in results.defects.items():
        yield from ((category, name, *map(found.get, DEFECTS[2:])) for name, found in defects.items())


def write_calibration(run: Path, calibration: "Calibration") -> None:
    """Write the scores of the normal images on which the thresholds were calibrated, a row per image."""
    rows = ((category, score) for category, scores in calibration.scores.items() for score in scores)
    write_atomically(run / _CALIBRATION, to_csv(("category", "score"), rows))


def read_calibration(run: Path) -> dict[str, list[float]]:
    """Read the calibration scores of a run by category, if any; raise a UserError if the file is damaged."""
    path, scores = run / _CALIBRATION, defaultdict[str, list[float]](list)
    try:
        for row in csv.DictReader(io.StringIO(read_if_exists(path) or "", newline="")):
            scores[row["category"]].append(float(row["score"]))
    except (LookupError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): evaluate the run again, or remove it") from error
    return dict(scores)


def write_trained(run: Path, paths: Iterable[str]) -> None:
    """Write the paths of the images that a run is trained on, a row per image."""
    write_atomically(run / _TRAINED, to_csv(("path",), ([path] for path in paths)))


def read_trained(run: Path) -> set[str]:
    """Read the paths of the images that a run was trained on; empty if they were not written."""
    rows = csv.reader(io.StringIO(read_if_exists(run / _TRAINED) or "", newline=""))
    return {row[0] for row in list(rows)[1:] if row}


def check_results(content: dict[str, Any]) -> None:
    """Raise a ValueError, LookupError, AttributeError or TypeError if JSON is not what `Results.as_dict` returns."""
    tables = [*content["categories"].values(), *(content.get(name) or {} for name in ("pooled", "validation"))]
    tables.append({name: content.get(name) for table in content["categories"].values() for name in [*table, *NUMBERS]})
    tables += [table for defects in (content.get("defects") or {}).values() for table in defects.values()]
    for name, value in (item for table in tables for item in table.items()):
        if isinstance(value, bool) or not isinstance(value, int | float | None) or math.isinf(value or 0):
            raise ValueError(f"{name} is {value!r}, which is not a finite number")
