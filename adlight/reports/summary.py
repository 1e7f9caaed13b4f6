"""The collected rows as a CSV file, as Markdown and in the terminal."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from adlight.reports.collect import Row, Run
from adlight.reports.groups import MISSING, Mean, differences, label, means, short_keys, shown
from adlight.reports.reference import Reference

TITLES = {  # the metrics of the tables, in their order
    "auroc": "AUROC",
    "ap": "AP",
    "f1_max": "best F1 (oracle)",
    "f1_calibrated": "F1 at threshold",
    "fpr_calibrated": "FPR at threshold",
    "trivial_f1": "F1 of all-anomalous",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
}
ORDER = (  # of results.csv; others follow as they come
    *("auroc", "ap", "f1_max", "f1_max_threshold", "precision_at_f1_max", "recall_at_f1_max", "fpr_at_95_tpr"),
    *("precision_calibrated", "recall_calibrated", "f1_calibrated", "fpr_calibrated", "trivial_f1"),
    *("pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_f1_max_threshold", "aupro", "pixel_iou_calibrated"),
)
SHORT = ("auroc", "f1_max", "f1_calibrated", "trivial_f1", "aupro")  # what a terminal has room for
HEADINGS = ("run", "model", "category", "images", "epochs", "seconds")  # a setting's column needs another
COMPARED = ("auroc", "f1_max")  # metrics with a column for the reference
ABOUT = ("epochs", "generator_steps", "seconds")


class Report:
    """What all outputs are made of.

    Attributes:
        runs: the collected runs.
        references: published numbers, by a run's place.
        tolerance: differences up to this count as equal.
        differing: the settings that differ between the runs, a value a run.
        means: over seeds, and over the categories of runs that are about one each.
        varying: headings of the settings that get columns of their own, by key; none where they are too many.
    """

    def __init__(self, runs: list[Run], references: dict[int, list[Reference]], tolerance: float) -> None:
        self.runs, self.references, self.tolerance = runs, references, tolerance
        label(runs)
        self.differing = differences(runs)
        self.means: list[Mean] = means(runs)
        keys = list(dict.fromkeys(key for run in runs for key in run.varying))
        names = short_keys(keys) if len(keys) <= 6 else {}
        self.varying = {key: key if name in HEADINGS else name for key, name in names.items()}

    def reference(self, i: int, row: Row, metric: str) -> float | None:
        """The published number beside a row of run i, None where there is none."""
        values = (reference.value(self.runs[i], row, metric) for reference in self.references[i])
        return next((value for value in values if value is not None), None)

    def mean_reference(self, mean: Mean, metric: str) -> float | None:
        """The published number beside a mean: from what its own runs are compared with."""
        for run in mean.runs:
            for reference in self.references[self.runs.index(run)]:
                known = reference.classes.get(metric, {})
                if set(mean.of) <= set(known):
                    return sum(known[name] for name in mean.of) / len(mean.of)
        return None

    def compared(self) -> list[str]:
        """The metrics for which some row has a published number."""
        lines = [(i, row) for i, run in enumerate(self.runs) for row in run.rows]
        return [name for name in COMPARED if any(self.reference(i, row, name) is not None for i, row in lines)]

    def metrics(self) -> list[str]:
        """All metrics that some row has, in the order of the CSV."""
        found = dict.fromkeys(name for run in self.runs for row in run.rows for name in row.metrics)
        rest = [name for name in found if name not in (*ORDER, "normal", "anomalous")]
        return [name for name in ORDER if name in found] + rest

    def titles(self) -> dict[str, str]:
        """The tables' metrics that some row has, with their headings."""
        return {name: title for name, title in TITLES.items() if name in self.metrics()}

    def states(self) -> str:
        """How many runs there are in which state."""
        states = [run.state for run in self.runs]
        return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def results_csv(report: Report) -> str:
    """The text of `results.csv`: a row a run and category; a run without results has one with state and reason."""
    metrics, compared, lines = report.metrics(), report.compared(), []
    for i, run in enumerate(report.runs):
        # a run's own values come last: a setting may be called like a metric
        common: dict[str, Any] = {
            key: "" if row[i] == MISSING else shown(row[i]) for key, row in report.differing.items()
        }
        common |= {"run": run.name, "state": run.state, "model": run.model, "dataset": run.dataset}
        common |= {"normal": run.settings.get("dataset.normal", ""), "seed": run.settings.get("seed", "")}
        common |= {name: run.about.get(name, "") for name in (*ABOUT, "threshold_rule", "commit")}
        common |= {"path": run.path, "reason": run.reason}
        lines += [common | cells(report, i, row) for row in run.rows] or [common]
    head = ["run", "state", "model", "dataset", "normal", "seed", "level", "category"]
    head += ["normal_images", "anomalous_images"]
    for name in metrics:
        head.append(name)
        if any(f"{name}_low" in line for line in lines):
            head += [f"{name}_low", f"{name}_high"]
    head += [f"reference_{name}" for name in compared]
    head += ["threshold", "threshold_rule", *ABOUT]
    head += [key for key in report.differing if key not in ("seed", *head)] + ["commit", "path", "reason"]
    text = io.StringIO()
    writer = csv.DictWriter(text, head, extrasaction="ignore", restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def cells(report: Report, i: int, row: Row) -> dict[str, Any]:
    """The columns of results.csv that belong to a row."""
    found: dict[str, Any] = {"level": row.level, "category": row.category, "threshold": row.threshold}
    found |= {f"{name}_images": int(row.metrics[name]) for name in ("normal", "anomalous") if name in row.metrics}
    found |= {name: value for name, value in row.metrics.items() if name not in ("normal", "anomalous")}
    for name, (low, high) in row.intervals.items():
        found |= {f"{name}_low": low, f"{name}_high": high}
    return found | {f"reference_{name}": report.reference(i, row, name) for name in COMPARED}


def figure(row: Row, name: str) -> str:
    """A metric in words: with half the width of its interval where that is known, empty where it was left out."""
    if name not in row.metrics:
        return ""
    low, high = row.intervals.get(name, (0.0, 0.0))
    return f"{row.metrics[name]:.3f}" + (f" ± {(high - low) / 2:.3f}" if name in row.intervals else "")


def overview(report: Report, names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a short table with some metrics: a row a run."""
    titles = {name: title for name, title in report.titles().items() if name in names}
    compared, lines = report.compared(), []
    for i, run in enumerate(report.runs):
        row = run.headline
        line = [run.name, *differing(report, run), row.category if row else run.state]
        line += [figure(row, name) if row else "" for name in titles]
        for name in compared:
            value = report.reference(i, row, name) if row else None
            line.append("" if value is None else f"{value:.3f}")
        lines.append(line)
    head = ["run", *(report.varying.values() or ["differs in"]), "category"]
    return [*head, *titles.values(), *(f"paper's {TITLES[name]}" for name in compared)], lines


def differing(report: Report, run: Run) -> list[str]:
    """In what a run differs from the others: a field a setting, or one for all of them."""
    values = [shown(run.varying[key]) if key in run.varying else "" for key in report.varying]
    return values if report.varying else [run.label]


def markdown(report: Report, title: str) -> str:
    """The text of `results.md`."""
    columns, lines = overview(report, list(TITLES))
    parts = [f"# {title}", report.states(), table_text(columns, lines, columns.index("category") + 1)]
    if report.means:
        parts += ["## Means (± standard deviation over seeds)", table_text(*mean_table(report), 3)]
    if broken := [f"* {run.name}: {run.state}. {run.reason}".strip() for run in report.runs if run.state != "finished"]:
        parts += ["## Runs without results", "\n".join(broken)]
    return "\n\n".join(parts) + "\n"


def table_text(columns: Sequence[str], lines: Sequence[Sequence[str]], words: int) -> str:
    """A Markdown table whose first columns are words and whose others are numbers."""
    rule = ["---"] * words + ["--:"] * (len(columns) - words)
    rows = [[cell.replace("|", "\\|") for cell in line] for line in (columns, rule, *lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def mean_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the means."""
    titles = {
        name: title for name, title in report.titles().items() if any(name in one.metrics for one in report.means)
    }
    rows = [
        [one.label, ", ".join(one.seeds), one.category, *(spread(one, name) for name in titles)] for one in report.means
    ]
    return ["runs", "seeds", "category", *titles.values()], rows


def spread(mean: Mean, name: str) -> str:
    """A mean in words, with its standard deviation if there are several seeds."""
    value, deviation = mean.metrics.get(name, (None, None))
    return "" if value is None else f"{value:.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")


def print_report(report: Report, written: Sequence[Path]) -> None:
    """Print the short table, what went wrong, and where the files lie."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a log file has no width of its own
    columns, lines = overview(report, SHORT)
    table = Table(title=report.states(), title_justify="left")
    for i, name in enumerate(columns):
        heading = name.replace("all-anomalous", "all-\nanomalous")
        words = i <= columns.index("category")
        table.add_column(heading, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for line in lines:
        table.add_row(*map(Text, line))
    console.print(table)
    lines_below = [f"{run.name}: {run.state}. {run.reason}".strip() for run in report.runs if run.reason]
    for line_below in [*lines_below, *(f"written: {path}" for path in written)]:
        console.print(line_below, highlight=False, soft_wrap=True, markup=False)
