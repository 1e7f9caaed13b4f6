"""What a run has left in its folder, and what a server answers."""

import csv
import json


def table(path):
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def content(run):
    """What stands in its metrics.json."""
    return json.loads((run / "metrics.json").read_text())


def numbers(run):
    """The metrics of a run or evaluation, without what tells it from others."""
    kept = ("pooled", "categories", "defects", "left_out", "threshold", "pixel_threshold", "thresholds")
    chosen = (
        key for key, value in content(run).items() if key in kept or (isinstance(value, float) and key != "seconds")
    )
    return {key: content(run)[key] for key in chosen}


def scores(run):
    """The scores of all test images."""
    return [float(row["score"]) for row in table(run / "predictions.csv")]


def one_line(answer, code):
    """The line with which a server refuses a request."""
    assert answer.status_code == code, answer.text
    (line,) = answer.json()["error"].splitlines()
    assert "Traceback" not in line and "/adlight/" not in line
    return line
