"""Tables for people: what stands in which, as frames with headings in two rows (see `reports.terminal`)."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from adlight.reports import grouping
from adlight.reports.collect import Runs
from adlight.reports.rows import CONFIG, OBJECTIVE, PROTOCOL, REFERENCE, defect_rows, result_rows
from adlight.reports.terminal import COUNT, DIFFERENCE, HIGH, LOW, PAPER, TEXT, VALUE, Heading, print_table

if TYPE_CHECKING:
    from adlight.metrics.results import Results

TITLES = {  # the metrics of the tables, in their order
    OBJECTIVE: OBJECTIVE,
    "auroc": "AUROC",
    "ap": "AP",
    "f1_max": "best F1 (oracle)",
    "f1_calibrated": "F1 at threshold",
    "fpr_calibrated": "FPR at threshold",
    "trivial_f1": "F1 of all-anomalous",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
}
SHORT = ("auroc", "f1_calibrated", "pixel_auroc", "aupro")  # what a terminal of 80 columns has room for
DEFECTS = {"auroc": "AUROC", "ap": "AP", "recall_calibrated": "recall at threshold"}
SETTINGS = 6  # columns at most for settings that differ


def by_result(content: Mapping[str, Any]) -> pd.DataFrame:
    """Make the table of one run's results: a row per category, their mean, and the pooled figures."""
    rows = pd.DataFrame(result_rows(dict(content)))
    return pd.DataFrame(_words(rows, "category") | _images(rows) | _metrics(rows))


def by_run(found: Runs, short: bool = False) -> pd.DataFrame:
    """Make the result table: a row per run, that of its mean or its only category; `short` leaves out what can wait."""
    rows = found.headlines
    words = ("category",) if (rows["status"] == "finished").all() else ("status", "category")
    columns = _run_columns(found, rows) | _words(rows, *words)
    if short:
        return pd.DataFrame(_words(rows, "name") | _news(columns, rows["name"]) | _metrics(rows, (OBJECTIVE, *SHORT)))
    return pd.DataFrame(columns | _images(rows) | _metrics(rows) | _protocol(rows) | _counts(rows))


def by_category(found: Runs) -> pd.DataFrame:
    """Make the table of the runs with several categories: a row per run and category, and one of all images pooled."""
    rows = found.results[(found.results["num_categories"] > 1) & ~found.results["headline"]]
    metrics = _metrics(rows, [name for name in TITLES if name != OBJECTIVE]) | _protocol(rows)
    return pd.DataFrame(_run_columns(found, rows) | _words(rows, "category") | _images(rows) | metrics)


def by_decision(found: Runs) -> pd.DataFrame:
    """Make the confusion matrices at the thresholds: a row per run and category."""
    rows = found.predictions
    if rows.empty:
        return pd.DataFrame()
    called, label = rows["score"] > rows["threshold"], rows["label"] == 1
    cells = {"found": called & label, "missed": ~called & label, "false alarms": called & ~label}
    cells |= {"passed": ~called & ~label, "called": called, "label": label}
    counts = pd.DataFrame(cells).groupby([rows["name"], rows["category"]], sort=False).sum().reset_index()
    normal = counts["false alarms"] + counts["passed"]
    shares = {"precision": counts["found"] / counts["called"], "recall": counts["found"] / counts["label"]}
    shares["FPR"] = counts["false alarms"] / normal
    columns = {(name, COUNT): counts[name].astype(float) for name in list(cells)[:4]}
    return pd.DataFrame(_words(counts, "name", "category") | columns | {(k, VALUE): of for k, of in shares.items()})


def by_defect(rows: pd.DataFrame) -> pd.DataFrame:
    """Make the table of defect types."""
    return pd.DataFrame(_words(rows, "name", "category", "defect") | _images(rows) | _metrics(rows, DEFECTS, DEFECTS))


def by_mean(means: pd.DataFrame) -> pd.DataFrame:
    """Make the table of `grouping.means`."""
    return pd.DataFrame(_words(means, "runs", "seeds", "category") | _metrics(means) | _protocol(means))


def by_job(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Make the table of a sweep: a row per job."""
    words = ("name",) if all(row["status"] == "finished" for row in rows) else ("name", "status")
    jobs = pd.DataFrame(rows, columns=None if rows else words)
    return pd.DataFrame(_words(jobs, *words) | _metrics(jobs, (OBJECTIVE, *SHORT)))


def by_setting(found: Runs) -> pd.DataFrame:
    """Make the table of the settings that differ between runs, the longer side downwards."""
    runs = found.headlines
    if not (columns := grouping.differing(runs)):
        return pd.DataFrame()
    table = runs[columns].fillna(grouping.UNSET).set_index(runs["name"])
    if len(runs) >= len(columns):
        table = table.rename(columns=grouping.short_names(columns)).reset_index()
    else:
        table = table.rename(columns=lambda name: name.removeprefix(CONFIG)).T.reset_index(names="setting")
    return table.set_axis(pd.MultiIndex.from_product([table.columns, [TEXT]]), axis=1)


def by_origin(found: Runs) -> pd.DataFrame:
    """Make the table of where each run comes from, and how it ended."""
    names = ("name", "status", "error", "log", "commit", "machine", "started", "command", "protocol", "folder")
    return pd.DataFrame(_words(found.headlines.dropna(axis=1, how="all"), *names))


def print_results(results: "Results", threshold: str, footnotes: list[str]) -> None:
    """Print a row per category, their mean, and the pooled figures, below them the threshold in words and footnotes."""
    print_table(by_result(results.as_dict()), "test results", (f"threshold: {threshold}", *footnotes))


def print_defects(results: "Results") -> None:
    """Print a row per defect type: its images against all normal ones of its category."""
    if rows := defect_rows(results.as_dict()):
        print_table(by_defect(pd.DataFrame(rows)), "by defect type, against all normal images of the category")


_HEADINGS = ("name", "model", "dataset", "status", "category", "images", "epochs", "seconds")


def _run_columns(found: Runs, rows: pd.DataFrame) -> dict[Heading, pd.Series]:
    """List name, model and data set where there are several, and the settings that differ within these two."""
    runs = found.headlines
    columns = _words(rows, "name", *(name for name in ("model", "dataset") if runs[name].nunique() > 1))
    settings = grouping.varied(runs).set_axis(runs["name"])
    if len(settings.columns) > SETTINGS:
        return columns | {("differs in", TEXT): rows["name"].map(grouping.labels(settings))}
    names = grouping.short_names(list(settings))
    titles = {name: name.removeprefix(CONFIG) if names[name] in _HEADINGS else names[name] for name in names}
    return columns | {(titles[name], TEXT): rows["name"].map(settings[name]) for name in titles}


def _words(rows: pd.DataFrame, *names: str) -> dict[Heading, pd.Series]:
    return {(name, TEXT): rows[name] for name in names if name in rows}


def _news(columns: dict[Heading, pd.Series], names: pd.Series) -> dict[Heading, pd.Series]:
    """Leave out what all rows share and what their names contain."""

    def is_news(column: pd.Series) -> bool:
        told = all(str(value) in name for value, name in zip(column, names, strict=True))
        return column.nunique() > 1 and not told

    return {heading: column for heading, column in columns.items() if is_news(column)}


def _images(rows: pd.DataFrame) -> dict[Heading, pd.Series]:
    if "normal_images" not in rows or rows["normal_images"].isna().all():
        return {}
    normal, anomalous = (rows[f"{name}_images"].astype("Int64").astype("string") for name in ("normal", "anomalous"))
    return {("images", TEXT): normal + " + " + anomalous}


def _counts(rows: pd.DataFrame) -> dict[Heading, pd.Series]:
    names = [name for name in ("epochs", "seconds") if name in rows and rows[name].notna().any()]
    return {(name, COUNT): rows[name].astype(float) for name in names}


def _metrics(
    rows: pd.DataFrame, metrics: Iterable[str] = tuple(TITLES), titles: Mapping[str, str] = TITLES
) -> dict[Heading, pd.Series]:
    """Make columns of the metrics that some row has: the value, its spread if known, and what was published."""
    columns = {}
    for name in metrics:
        if name in rows and rows[name].notna().any():
            title, reference = titles[name], f"{REFERENCE}{name}"
            columns[title, VALUE] = rows[name].astype(float)
            if f"{name}_lower" in rows:
                columns |= {(title, LOW): rows[f"{name}_lower"], (title, HIGH): rows[f"{name}_upper"]}
            if reference in rows and rows[reference].notna().any():
                columns[title, PAPER] = rows[reference]
                difference = (rows[name] - rows[reference]).where(rows[PROTOCOL] == "")
                columns |= {(title, DIFFERENCE): difference} if difference.notna().any() else {}
    return columns


def _protocol(rows: pd.DataFrame) -> dict[Heading, pd.Series]:
    """Say in what the images differ from those of the published numbers, where they do."""
    if PROTOCOL not in rows or not rows[PROTOCOL].any():
        return {}
    return {("another protocol", TEXT): rows[PROTOCOL].fillna("")}
