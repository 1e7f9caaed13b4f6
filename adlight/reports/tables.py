"""The result table of a run, for the terminal."""

from rich.console import Console
from rich.markup import escape
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

    Figures with a 95 % interval are shown as value ± half its width.

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
        table.add_row(escape(name), counts(metrics), *(figure(metrics, key) for key in shown))
    console = printer()
    console.print(table)
    for line in (f"threshold: {threshold}", *notes):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def print_defects(results: Results) -> None:
    """Print a row a defect type: its images against all normal ones of its category."""
    table = Table(title="by defect type, against all normal images of the category", title_justify="left")
    for title in ("category", "defect"):
        table.add_column(title, no_wrap=True)
    titles = {"auroc": "AUROC", "ap": "AP", "recall_calibrated": "recall at\nthreshold"}
    for title in ("normal +\nanomalous", *titles.values()):
        table.add_column(title, justify="right")
    for category, defects in results.defects.items():
        for i, (name, metrics) in enumerate(defects.items()):
            first = escape(category) if i == 0 else ""
            table.add_row(first, escape(name), counts(metrics), *(figure(metrics, key) for key in titles))
        table.add_section()
    if table.row_count:
        printer().print(table)


def printer() -> Console:
    """The terminal; a log file has no width of its own."""
    console = Console()
    return console if console.is_terminal else Console(width=140)


def counts(metrics: Metrics) -> str:
    """Write the numbers of images, where they are known."""
    return f"{metrics['normal']:.0f} + {metrics['anomalous']:.0f}" if "normal" in metrics else ""


def figure(metrics: Metrics, key: str) -> str:
    """Write a metric with three decimals and half its interval's width, or a dash where it was left out."""
    if key not in metrics:
        return "-"
    ends = [metrics[f"{key}_{end}"] for end in ("lower", "upper") if f"{key}_{end}" in metrics]
    return f"{metrics[key]:.3f}" + (f" ± {(ends[1] - ends[0]) / 2:.3f}" if ends else "")
