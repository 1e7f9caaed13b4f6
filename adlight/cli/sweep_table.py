"""The table of a sweep: one row per job, read from what the jobs' folders hold; any process of a sweep may write it."""

import shlex
from typing import Any

from adlight.runs.folder import RunFolder
from adlight.runs.sweep_folder import SweepFolder
from adlight.runs.tables import to_csv

OBJECTIVE = "val/auroc"  # what a search maximises: never a figure of the test split
COUNTS = ("epochs", "seconds")
MAIN = ("auroc", "ap", "f1_max", "f1_calibrated", "pixel_auroc", "aupro", *COUNTS)
COLUMNS = ("job", "name", "status", OBJECTIVE, *MAIN, "error", "log", "overrides", "folder")


def read_job(run: RunFolder) -> dict[str, Any]:
    """Give a job's row of the table; what is not known is left out."""
    row = run.job() or {}
    row |= {
        "name": run.path.name,
        "folder": str(run),
        "overrides": shlex.join(row["overrides"]),
        "status": "unfinished",
    }
    if run.log.exists():
        row["log"] = str(run.log)
    if (error := run.failure()) is not None:
        return row | {"status": "failed", "error": error}
    if (content := run.read_results()) is not None:
        row |= {"status": "finished", OBJECTIVE: content.get("validation", {}).get(OBJECTIVE)}
        row |= {name: content[name] for name in MAIN if name in content}
    return row


def read_table(sweep: SweepFolder) -> list[dict[str, Any]]:
    """Give the rows of all jobs that a sweep has begun, in their order."""
    return list(map(read_job, sweep.jobs()))


def write_table(sweep: SweepFolder) -> None:
    """Write the table anew; of several processes the last has seen what all have done."""
    with sweep.lock():
        sweep.write_table(to_csv(COLUMNS, ([row.get(name) for name in COLUMNS] for row in read_table(sweep))))


def print_table(sweep: SweepFolder) -> None:
    """Print the main columns of a sweep's table, and the errors below."""
    from rich.console import Console
    from rich.table import Table

    rows = read_table(sweep)
    names = [name for name in (OBJECTIVE, *MAIN) if any(row.get(name) is not None for row in rows)]
    table = Table(title=f"sweep {sweep}", title_justify="left")
    for name in ("job", "name", "status", *names):
        table.add_column(name, justify="left" if name in ("name", "status") else "right", overflow="fold")
    for row in rows:
        figures = [
            f"{row[name]:{'.3f' if name not in COUNTS else '.0f'}}" if row.get(name) is not None else "-"
            for name in names
        ]
        table.add_row(str(row["job"]), row["name"], row["status"], *figures)
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a log file has no width of its own
    console.print(table)
    console.print(f"table: {sweep.table_path}", highlight=False, soft_wrap=True)
