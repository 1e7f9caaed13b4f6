"""What drift is measured by: scores that thresholds were calibrated on, and predictions in time.

<run>/calibration.csv            one row per normal image: category, score
<run>/predictions/<time>/        what `adlight.predict` wrote, by when it was called
"""

import csv
import datetime
import io
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from adlight.runs.files import read_if_exists, write_atomically
from adlight.runs.tables import to_csv
from adlight.types import UserError

if TYPE_CHECKING:  # torch takes seconds: not for --help
    from adlight.metrics.thresholds import Calibration

_CALIBRATION, _PREDICTIONS, _TABLE = "calibration.csv", "predictions", "predictions.csv"
_TIME = re.compile(r"(\d{4})(\d\d)(\d\d)-\d{6}")


def write_calibration(run: Path, calibration: "Calibration") -> None:
    """Write the scores of the normal images that thresholds were calibrated on."""
    rows = ((name, score) for name, scores in calibration.scores.items() for score in scores)
    write_atomically(run / _CALIBRATION, to_csv(("category", "score"), rows))


def read_calibration(run: Path) -> dict[str, list[float]]:
    """Read the scores of normal images by category; empty where an older version kept none.

    Raises:
        UserError: the file is damaged.
    """
    found = defaultdict[str, list[float]](list)
    try:
        for row in csv.DictReader(io.StringIO(read_if_exists(run / _CALIBRATION) or "", newline="")):
            found[row["category"]].append(float(row["score"]))
    except (LookupError, ValueError, TypeError) as error:
        raise UserError(f"{run / _CALIBRATION} is damaged ({error}): evaluate the run again, or remove it") from error
    return dict(found)


def prediction_tables(run: Path) -> list[tuple[datetime.date, Path]]:
    """List the tables of a run's predictions with the day of each, by its folder's name or else its own age."""
    found = []
    for path in sorted((run / _PREDICTIONS).glob(f"*/{_TABLE}")):
        if match := _TIME.match(path.parent.name):
            found.append((datetime.date(*map(int, match.groups())), path))
        else:
            found.append((datetime.date.fromtimestamp(path.stat().st_mtime), path))
    return sorted(found)


def run_of(place: Path) -> Path:
    """Give the run that a folder of predictions belongs to; any other place is itself."""
    return place.parent if place.name == _PREDICTIONS and place.is_dir() else place
