"""The result table of a run, for the terminal."""

from rich.console import Console
from rich.table import Table

from adlight.metrics.results import Metrics, Results

COLUMNS = {
    "auroc": "AUROC",
    "ap": "AP",
    "f1_max": "best F1\n(oracle)",
    "f1_calibrated": "F1 at\nthreshold",
    "fpr_calibrated": "FPR at\nthreshold",
    "trivial_f1": "F1 of all-\nanomalous",
    "pixel_auroc": "pixel\nAUROC",
    "aupro": "AUPRO",
}


def print_results(results: Results, threshold: str, notes: list[str]) -> None:
    """Print a row a category, their mean, and the pooled figures; columns that no row has are left out.

    Args:
        results: the numbers.
        threshold: how the threshold came about, in words.
        notes: lines to print below the table.
    """
    rows = {**results.categories}
    if len(results.categories) > 1:
        rows |= {"mean of categories": results.mean, "pooled": results.pooled}
    shown = {key: title for key, title in COLUMNS.items() if any(key in row for row in rows.values())}
    table = Table(title="test results", title_justify="left")
    table.add_column("category", no_wrap=True)
    table.add_column("normal +\nanomalous", justify="right")
    for title in shown.values():
        table.add_column(title, justify="right")
    for name, metrics in rows.items():
        if name == "mean of categories":
            table.add_section()
        table.add_row(name, counts(metrics), *(figure(metrics, key) for key in shown))
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a log file has no width of its own
    console.print(table)
    console.print(f"threshold: {threshold}", highlight=False)
    for note in notes:
        console.print(note, highlight=False, soft_wrap=True)


def counts(metrics: Metrics) -> str:
    """Write the numbers of images, where they are known."""
    return f"{metrics['normal']:.0f} + {metrics['anomalous']:.0f}" if "normal" in metrics else ""


def figure(metrics: Metrics, key: str) -> str:
    """Write a metric with three decimals, or a dash where it was left out."""
    return f"{metrics[key]:.3f}" if key in metrics else "-"
