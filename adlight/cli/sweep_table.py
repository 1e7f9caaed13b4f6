"""The table of a sweep: one row per job, read from what the jobs' folders hold; any process of a sweep may write it."""

import shlex
from typing import Any

from adlight.reports.rows import OBJECTIVE, read_results
from adlight.runs.folder import RunFolder
from adlight.runs.sweep_folder import SweepFolder
from adlight.runs.tables import to_csv

MAIN = ("auroc", "ap", "f1_max", "f1_calibrated", "pixel_auroc", "aupro")
COLUMNS = ("job", "name", "status", OBJECTIVE, *MAIN, "epochs", "seconds", "error", "log", "overrides", "folder")


def read_job(run: RunFolder) -> dict[str, Any]:
    """Give a job's row of the table, named as in `reports.rows`; what is not known is left out."""
    job = run.job() or {}
    rows, _ = read_results(run)
    row = next(row for row in rows if row["headline"])
    return row | {"job": job.get("job"), "name": run.path.name, "overrides": shlex.join(job.get("overrides", ()))}


def read_table(sweep: SweepFolder) -> list[dict[str, Any]]:
    """Give the rows of all jobs that a sweep has begun, in their order."""
    return list(map(read_job, sweep.jobs()))


def write_table(sweep: SweepFolder) -> None:
    """Write the table anew; of several processes the last has seen what all have done."""
    with sweep.lock():
        sweep.write_table(to_csv(COLUMNS, ([row.get(name) for name in COLUMNS] for row in read_table(sweep))))


def print_table(sweep: SweepFolder) -> None:
    """Print the main columns of a sweep's table."""
    from adlight.reports import tables  # here and not above: --help must not wait for pandas

    tables.print_table(tables.by_job(read_table(sweep)), f"sweep {sweep}", [f"table: {sweep.table_path}"])
