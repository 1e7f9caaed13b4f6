"""The report's tables, as frames with two rows of headings (see `reports.terminal`)."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from adlight.reports import grouping
from adlight.reports.collect import Runs, config_columns
from adlight.reports.rows import CONFIG, OBJECTIVE, PROTOCOL, REFERENCE, defect_rows, result_rows
from adlight.reports.terminal import COUNT, DIFFERENCE, HIGH, LOW, PAPER, TEXT, VALUE, Heading, print_table, to_markdown

if TYPE_CHECKING:
    from adlight.metrics.results import Results

TITLES = {  # titles of the metrics in the order of the columns
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
SHORT = ("auroc", "f1_calibrated", "pixel_auroc", "aupro")  # metrics that fit a terminal of 80 columns
DEFECTS = {"auroc": "AUROC", "ap": "AP", "recall_calibrated": "recall at threshold"}
SETTINGS = 6  # largest number of columns for differing settings


def by_result(content: Mapping[str, Any]) -> pd.DataFrame:
    """Tabulate one run's results: a row per category, their mean, and the pooled images."""
    rows = pd.DataFrame(result_rows(dict(content)))
    return pd.DataFrame(_texts(rows, "category") | _images(rows) | _metrics(rows))


def by_run(runs: Runs, short: bool = False) -> pd.DataFrame:
    """Tabulate the headline of each run: its mean or its only category; `short` keeps the main columns only."""
    rows = runs.headlines
    names = ("category",) if (rows["status"] == "finished").all() else ("status", "category")
    columns = _run_columns(runs, rows) | _texts(rows, *names)
    if short:
        columns = _drop_redundant(columns, rows["name"])
        return pd.DataFrame(_texts(rows, "name") | columns | _metrics(rows, (OBJECTIVE, *SHORT)))
    return pd.DataFrame(columns | _images(rows) | _metrics(rows) | _protocol(rows) | _counts(rows))


def by_category(runs: Runs) -> pd.DataFrame:
    """Tabulate runs with several categories: a row per run and category, and a row for the pooled images."""
    rows = runs.results[(runs.results["num_categories"] > 1) & ~runs.results["headline"]]
    metrics = _metrics(rows, [name for name in TITLES if name != OBJECTIVE]) | _protocol(rows)
    return pd.DataFrame(_run_columns(runs, rows) | _texts(rows, "category") | _images(rows) | metrics)


def by_decision(runs: Runs) -> pd.DataFrame:
    """Tabulate the confusion matrices at the thresholds: a row per run and category."""
    rows = runs.predictions
    if rows.empty:
        return pd.DataFrame()
    called, label = rows["score"] > rows["threshold"], rows["label"] == 1
    cells = {"found": called & label, "missed": ~called & label, "false alarms": called & ~label}
    cells |= {"passed": ~called & ~label, "called": called, "label": label}
    counts = pd.DataFrame(cells).groupby([rows["name"], rows["category"]], sort=False).sum().reset_index()
    found = counts["found"].where(counts["label"] > 0)  # precision is undefined without anomalous images
    shares = {"precision": found / counts["called"], "recall": found / counts["label"]}
    shares["FPR"] = counts["false alarms"] / (counts["false alarms"] + counts["passed"])
    columns = {(name, COUNT): counts[name].astype(float) for name in list(cells)[:4]}
    columns |= {(name, VALUE): share for name, share in shares.items()}
    return pd.DataFrame(_texts(counts, "name", "category") | columns)


def by_defect(rows: pd.DataFrame) -> pd.DataFrame:
    """Tabulate defect types: a row per run, category and type."""
    return pd.DataFrame(_texts(rows, "name", "category", "defect") | _images(rows) | _metrics(rows, DEFECTS, DEFECTS))


def by_mean(means: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the means of `grouping.average_runs`."""
    return pd.DataFrame(_texts(means, "runs", "seeds", "category") | _metrics(means) | _protocol(means))


def by_job(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Tabulate a sweep: a row per job."""
    names = ("name",) if all(row["status"] == "finished" for row in rows) else ("name", "status")
    jobs = pd.DataFrame(rows, columns=None if rows else names)
    return pd.DataFrame(_texts(jobs, *names) | _metrics(jobs, (OBJECTIVE, *SHORT)))


def by_setting(runs: Runs) -> pd.DataFrame:
    """Tabulate the settings that differ between runs; the rows are runs or settings, whichever are more."""
    rows = runs.headlines
    if not (columns := grouping.find_differing(rows)):
        return pd.DataFrame()
    table = rows[columns].fillna(grouping.UNSET).set_index(rows["name"])
    if len(rows) >= len(columns):
        table = table.rename(columns=grouping.shorten_keys(columns)).reset_index()
    else:
        table = table.rename(columns=lambda name: name.removeprefix(CONFIG)).T.reset_index(names="setting")
    return table.set_axis(pd.MultiIndex.from_product([table.columns, [TEXT]]), axis=1)


def by_origin(runs: Runs) -> pd.DataFrame:
    """Tabulate the provenance and status of each run."""
    names = ("name", "status", "error", "log", "commit", "machine", "started", "command", "protocol", "folder")
    return pd.DataFrame(_texts(runs.headlines.dropna(axis=1, how="all"), *names))


def results_csv(runs: Runs) -> str:
    """Format `Runs.results` as CSV at full precision, without the settings that are the same in all runs."""
    kept = {*grouping.find_differing(runs.headlines), *grouping.CLASS_KEYS, grouping.SEED}
    dropped = [name for name in config_columns(runs.results) if name not in kept]
    return runs.results.drop(columns=dropped).to_csv(index=False, lineterminator="\n")


def results_markdown(runs: Runs, means: pd.DataFrame, title: str) -> str:
    """Format results, means and problems as Markdown."""
    parts = [f"# {title}", runs.states, to_markdown(by_run(runs))]
    if len(means):
        parts += ["## Means (± standard deviation over seeds)", to_markdown(by_mean(means))]
    if runs.problems:
        parts += ["## Problems", "\n".join(f"* {name}: {line}" for name, line in runs.problems.items())]
    return "\n\n".join(parts) + "\n"


def print_results(results: "Results", threshold: str, footnotes: list[str]) -> None:
    """Print a row per category, their mean and the pooled images, followed by the threshold and notes."""
    notes = (*results.describe_left_out(), f"threshold: {threshold}", *footnotes)
    print_table(by_result(results.as_dict()), "test results", notes)


def print_defects(results: "Results") -> None:
    """Print a row per defect type, evaluated against all normal images of its category."""
    if rows := defect_rows(results.as_dict()):
        print_table(by_defect(pd.DataFrame(rows)), "by defect type, against all normal images of the category")


_HEADINGS = ("name", "model", "dataset", "status", "category", "images", "epochs", "seconds")


def _run_columns(runs: Runs, rows: pd.DataFrame) -> dict[Heading, pd.Series]:
    """Make columns for name, model and data set (if there are several), and settings in which runs of both differ."""
    headlines = runs.headlines
    columns = _texts(rows, "name", *(name for name in ("model", "dataset") if headlines[name].nunique() > 1))
    settings = grouping.select_differing(headlines).set_axis(headlines["name"])
    if len(settings.columns) > SETTINGS:
        return columns | {("differs in", TEXT): rows["name"].map(grouping.label_settings(settings))}
    names = grouping.shorten_keys(list(settings))
    titles = {name: name.removeprefix(CONFIG) if names[name] in _HEADINGS else names[name] for name in names}
    return columns | {(titles[name], TEXT): rows["name"].map(settings[name]) for name in titles}


def _texts(rows: pd.DataFrame, *names: str) -> dict[Heading, pd.Series]:
    return {(name, TEXT): rows[name] for name in names if name in rows}


def _drop_redundant(columns: dict[Heading, pd.Series], names: pd.Series) -> dict[Heading, pd.Series]:
    """Drop columns that are the same in all rows, or repeat parts of the runs' names."""

    def is_redundant(column: pd.Series) -> bool:
        return column.nunique() <= 1 or all(str(value) in name for value, name in zip(column, names, strict=True))

    return {heading: column for heading, column in columns.items() if not is_redundant(column)}


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
    """Make columns for all metrics that occur: value, interval if known, published value and difference."""
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
    """Make a column that describes how a run's data differ from the publication's, if any run's data do."""
    if PROTOCOL not in rows or not rows[PROTOCOL].any():
        return {}
    return {("another protocol", TEXT): rows[PROTOCOL].fillna("")}
