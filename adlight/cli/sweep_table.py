"""The table of a sweep: a row a job, read from what the jobs' folders hold; any process of a sweep may write it."""

import csv
import json
import os
import shlex
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OBJECTIVE = "val/auroc"  # what a search maximises: never a figure of the test split
COUNTS = ("epochs", "seconds")
MAIN = ("auroc", "ap", "f1_max", "f1_calibrated", "pixel_auroc", "aupro", *COUNTS)
COLUMNS = ("job", "name", "status", OBJECTIVE, *MAIN, "error", "log", "overrides", "folder")


@contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[None]:
    """Hold a lock file, which whatever ends this process gives free; file systems without locks go without.

    lockf works over NFS too. The lock is the process's, and gone when it closes the file: never open it twice.

    Args:
        path: the file, which stays there.
        waiting: what to print if another process holds it.
    """
    import fcntl

    with path.open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # which of them depends on the system
            if waiting:
                print(waiting, flush=True)
            fcntl.lockf(file, fcntl.LOCK_EX)
        except OSError:
            pass
        yield


def read_job(folder: Path) -> dict[str, Any]:
    """A job's row of the table; what is not known is left out."""
    row: dict[str, Any] = json.loads((folder / "job.json").read_text())
    row |= {
        "name": folder.name,
        "folder": str(folder),
        "overrides": shlex.join(row["overrides"]),
        "status": "unfinished",
    }
    if log := next(iter(sorted(folder.glob("*.log"))), None):
        row["log"] = str(log)
    if (error := text_of(folder / "error.txt")) is not None:
        return row | {"status": "failed", "error": error.strip()}
    if (found := text_of(folder / "metrics.json")) is not None:
        content = json.loads(found)
        row |= {"status": "finished", OBJECTIVE: content.get("validation", {}).get(OBJECTIVE)}
        row |= {name: content[name] for name in MAIN if name in content}
    return row


def text_of(path: Path) -> str | None:
    """What a file holds; None if there is none (any more: another process may go on with the job just now)."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def read_table(sweep: Path) -> list[dict[str, Any]]:
    """The rows of all jobs that a sweep has begun, in their order."""
    rows = [read_job(note.parent) for note in sweep.glob("*/job.json")]
    return sorted(rows, key=lambda row: (row["job"], row["name"]))


def write_table(sweep: Path) -> None:
    """Write `results.csv` anew, whole or not at all; of several processes the last has seen what all have done."""
    partial = sweep / f".results.{uuid.uuid4().hex}.part"  # two nodes may have processes of the same number
    with locked(sweep / ".lock"):
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(read_table(sweep))
        os.replace(partial, sweep / "results.csv")


def print_table(sweep: Path) -> None:
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
    console.print(f"table: {sweep / 'results.csv'}", highlight=False, soft_wrap=True)
