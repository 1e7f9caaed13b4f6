"""Rows about a run: settings, status and results. No pandas here, so that the jobs of sweeps need not import it."""

import json
import math
from typing import Any

from adlight.runs.folder import RunFolder
from adlight.runs.tables import OBJECTIVE
from adlight.types import UserError

HEAD = ["name", "status", "model", "dataset", "level", "category", "headline", "normal_images", "anomalous_images"]
METRICS = [  # in the order of columns; other metrics follow
    OBJECTIVE,
    *("auroc", "ap", "f1_max", "f1_max_threshold", "precision_at_f1_max", "recall_at_f1_max", "fpr_at_95_tpr"),
    *("precision_calibrated", "recall_calibrated", "f1_calibrated", "fpr_calibrated", "trivial_f1"),
    *("pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_f1_max_threshold", "aupro", "pixel_iou_calibrated"),
]
METADATA = ["epochs", "generator_steps", "seconds", "threshold_method", "commit", "machine", "started", "command"]
TAIL = ["threshold", "pixel_threshold", *METADATA, "protocol", "sweep", "experiment", "categories"]
TAIL += ["num_categories", "folder", "error", "log"]
CONFIG = "config."  # prefix of the dotted keys of settings, as at W&B
REFERENCE = "reference_"  # prefix of published metrics
PROTOCOL = f"{REFERENCE}protocol"  # how the run's data differ from the publication's
_PLACES = ("resume", "resume_sweep", "run_dir", "run")  # settings that locate a run and do not change it
_COUNTS = {"normal": "normal_images", "anomalous": "anomalous_images"}
_THRESHOLDS = ("threshold", "pixel_threshold")


def read_results(run: RunFolder) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Read a run's status and, if it was tested, its results. -> rows, and the content of the results file."""
    row = status_row(run)
    try:
        content = run.read_results()
    except UserError as error:
        return [row | {"status": "damaged", "error": str(error)}], {}
    if content is None:
        return [row], {}
    row |= {name: content.get(name) for name in (*METADATA, "protocol")}
    row[OBJECTIVE] = content.get("validation", {}).get(OBJECTIVE)
    row |= {"categories": ", ".join(sorted(content["categories"])), "num_categories": len(content["categories"])}
    return [row | result for result in result_rows(content)], content


def result_rows(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Make a row per category of the results and, for several categories, rows for their mean and the pooled images."""
    tables = {name: _numbers(table) for name, table in content["categories"].items()}
    rows = [{"level": "category", "category": name, "headline": len(tables) == 1, **tables[name]} for name in tables]
    if len(tables) > 1:
        known = {name for table in tables.values() for name in table} - {*_COUNTS.values(), *_THRESHOLDS}
        mean = {name: value for name, value in _numbers(content).items() if name in known}
        rows.append({"level": "mean", "category": f"mean of {len(tables)}", "headline": True, **mean})
        if pooled := _numbers(content.get("pooled", {})):
            rows.append({"level": "pooled", "category": "pooled", "headline": False, **pooled})
    return rows


def status_row(run: RunFolder) -> dict[str, Any]:
    """Make the row of any run, tested or not: name, folder, status, error and log."""
    error = run.failure()
    status = "failed" if error is not None else "finished" if run.is_finished else "unfinished"
    row = {"name": str(run), "folder": str(run), "status": status, "headline": True}
    return row | ({} if error is None else {"error": error}) | ({"log": str(run.log)} if run.log.exists() else {})


def setting_row(settings: dict[str, Any], choices: dict[str, Any]) -> dict[str, Any]:
    """Make the row of a run's settings: model, data set, and `config.<setting>` as text."""
    row = {f"{CONFIG}{key}": _as_text(value) for key, value in settings.items() if key not in _PLACES}
    for name, target in (("model", "model._target_"), ("dataset", "dataset.source._target_")):
        row[name] = str(choices.get(name) or str(settings.get(target, "")).rpartition(".")[2])
    return row | {name: choices.get(name) for name in ("sweep", "experiment")}


def defect_rows(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Make a row per category and defect type."""
    return [
        {"category": category, "defect": defect, **_numbers(table)}
        for category, tables in (content.get("defects") or {}).items()
        for defect, table in tables.items()
    ]


def _as_text(value: Any) -> str:
    """Format a setting as in a config file, with quotes around strings that would be parsed as another type."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _numbers(table: dict[str, Any]) -> dict[str, float]:
    """Select the finite numbers of a table, by name."""
    kept = {name: value for name, value in table.items() if isinstance(value, int | float) and math.isfinite(value)}
    return {_COUNTS.get(name, name): float(value) for name, value in kept.items()}
