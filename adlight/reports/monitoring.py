"""Tables and pictures beyond the runs' own results: drift of predictions, groups of anomalies, and searches."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from adlight.reports import drift
from adlight.reports.collect import READ_ERRORS, Runs
from adlight.reports.figures import BLUE, GREY, STYLE, VERMILION
from adlight.reports.sections import Picture, embed_figure, link_picture
from adlight.reports.terminal import COUNT, TEXT, VALUE
from adlight.runs.find import find_studies
from adlight.runs.subfolders import GroupFolder
from adlight.runs.tables import OBJECTIVE, read_calibration
from adlight.types import UserError, first_line

EMPTY = pd.DataFrame()
METRICS = {"silhouette": "silhouette", "adjusted_rand": "adjusted Rand index", "purity": "purity"}
SHEETS = 8  # largest number of pictures of groups per run


class Monitoring(NamedTuple):
    """Tables and pictures of drift, groups and searches."""

    drift: pd.DataFrame = EMPTY  # a row per run, day and category
    drift_figures: Sequence[Picture] = ()  # one per run
    drift_lines: Sequence[str] = ()  # one per run, day and category with drift
    groups: pd.DataFrame = EMPTY  # a row per run and group
    sheets: Sequence[tuple[str, list[Picture]]] = ()  # runs' names with the pictures of their groups
    histories: Sequence[Picture] = ()  # one per search
    importances: pd.DataFrame = EMPTY  # a row per search and setting
    problems: Sequence[str] = ()  # one line per unreadable file


def monitor_runs(runs: Runs, places: Sequence[str], folder: Path) -> Monitoring:
    """Read the predictions of runs, the groups of their anomalies, and searches, for a page in `folder`.

    Damaged files become problems; everything else is shown.
    """
    drifts, figures, lines, groups, sheets = [], list[Picture](), list[str](), [], []
    histories, importances, problems = read_searches(places)
    for name, place in runs.headlines[["name", "folder"]].to_numpy():
        try:
            if len(history := drift.read_history(Path(place))):
                known = read_calibration(Path(place))
                tested = drift.compare_days(history, known)
                drifts.append(tested.assign(name=name))
                lines += drift.describe_drift(name, tested)
                note = "" if known else "The scores of its calibration were not stored, so nothing is tested."
                figures.append(embed_figure(drift.plot_drift(history, tested, known), name, note))
            if (newest := GroupFolder.latest(Path(place))) is not None:
                table, pictures = _read_groups(name, newest, folder)
                groups.append(table)
                sheets.append((name, pictures))
        except UserError as error:
            problems.append(f"{name}: {error}")
        except READ_ERRORS as error:
            problems.append(f"{name}: its groups are damaged ({type(error).__name__}: {error}): group them again")
    return Monitoring(
        drift=_tabulate_drift(pd.concat(drifts, ignore_index=True)) if drifts else EMPTY,
        drift_figures=figures,
        drift_lines=lines,
        groups=pd.concat(groups) if groups else EMPTY,
        sheets=sheets,
        histories=histories,
        importances=importances,
        problems=problems,
    )


def _tabulate_drift(rows: pd.DataFrame) -> pd.DataFrame:
    texts = {"name": rows["name"], "day": rows["day"].astype(str), "category": rows["category"]}
    verdict = rows["drifts"].map({True: "drifts", False: "as in calibration"}).where(rows["p"].notna(), "not tested")
    columns = {(title, TEXT): column for title, column in texts.items()} | {("images", COUNT): rows["images"]}
    numbers = {"share above": rows["above"], "Kolmogorov-Smirnov": rows["ks"], "corrected p": rows["p"]}
    columns |= {(title, VALUE): column.astype(float) for title, column in numbers.items()}
    return pd.DataFrame(columns | {("scores", TEXT): verdict})


def _read_groups(name: str, groups: GroupFolder, folder: Path) -> tuple[pd.DataFrame, list[Picture]]:
    """Tabulate a run's groups, the largest first, and link their pictures from a page in `folder`."""
    rows, summary = groups.read()
    sizes = Counter(int(row["group"]) for row in rows)
    lines, pictures = [], list[Picture]()
    for group, size in sorted(sizes.items(), key=lambda pair: (-pair[1], pair[0])):
        defects = Counter(row["defect"] for row in rows if int(row["group"]) == group).most_common(3)
        described = ", ".join(f"{defect} {count}" for defect, count in defects)
        title = "in no group" if group < 0 else f"group {group}"
        lines.append((name, title, float(size), described, defects[0][1] / size, *map(summary.get, METRICS)))
        path = groups.sheet(group)
        if path.is_file() and len(pictures) < SHEETS:
            pictures.append(link_picture(path, folder, f"{title}: {described}"))
    titles = [("name", TEXT), ("group", TEXT), ("regions", COUNT), ("most frequent types", TEXT), ("share", VALUE)]
    titles += [(title, VALUE) for title in METRICS.values()]
    table = pd.DataFrame(lines, columns=pd.MultiIndex.from_tuples(titles))
    return table.dropna(axis=1, how="all"), pictures


def read_searches(places: Sequence[str]) -> tuple[list[Picture], pd.DataFrame, list[str]]:
    """Plot the history of each search at or below `places`, and rank its settings by importance.

    The importance of a setting is the share of the variance of `val/auroc` that it explains, as computed by Optuna
    (fANOVA, Hutter 2014; without scikit-learn PED-ANOVA, Watanabe 2023).

    Returns:
        A picture per search, a table with a row per search and setting, and a line for each unreadable search.
    """
    pictures, rows, problems = list[Picture](), list[tuple[str, str, float]](), list[str]()
    for sweep in find_studies(places):
        try:
            import optuna
            from sqlalchemy.exc import SQLAlchemyError  # of Optuna's storage
        except ImportError:
            problems.append(f"search {sweep}: pip install 'adlight[optuna]' shows its history and importances")
            continue
        optuna.logging.set_verbosity(logging.WARNING)
        try:
            storage = f"sqlite:///{sweep.study_path}"
            for summary in optuna.get_all_study_summaries(storage):
                study = optuna.load_study(study_name=summary.study_name, storage=storage)
                trials = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
                if trials:
                    name, best, importances = sweep.path.name, study.best_trial, _compute_importances(study)
                    settings = ", ".join(f"{key}={value}" for key, value in best.params.items())
                    note = f"Best: trial {best.number}, {best.value:.4f}: {settings}"
                    pictures.append(embed_figure(plot_search(trials, importances), name, note))
                    rows += [(name, key, value) for key, value in importances.items()]
        except (*READ_ERRORS, optuna.exceptions.OptunaError, SQLAlchemyError) as error:
            problems.append(f"search {sweep}: {type(error).__name__}: {first_line(error)}")
    titles = pd.MultiIndex.from_tuples([("search", TEXT), ("setting", TEXT), ("importance", VALUE)])
    return pictures, pd.DataFrame(rows, columns=titles), problems


def _compute_importances(study: Any) -> dict[str, float]:
    """Compute the importances of a search's settings; empty if there are too few trials or all are equal."""
    import optuna

    try:
        return optuna.importance.get_param_importances(study)
    except ImportError:  # fANOVA needs scikit-learn
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError):
        return {}


@rc_context(STYLE)
def plot_search(trials: Sequence[Any], importances: dict[str, float]) -> Figure:
    """Plot each trial's value and the best so far, beside the importances of the settings."""
    figure = Figure(figsize=(8.5, max(2.6, 0.3 * len(importances) + 1)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    number, value = np.array([(trial.number, trial.value) for trial in trials]).T
    left.plot(number, value, "o", ms=4, color=BLUE, label="trial")
    left.step(number, np.maximum.accumulate(value), where="post", color=VERMILION, label="best so far")
    left.set(xlabel="trial", ylabel=OBJECTIVE)
    left.locator_params(axis="x", integer=True)
    left.legend(fontsize=8)
    names = list(importances)[::-1]
    right.barh(names, [importances[name] for name in names], color=GREY)
    right.set_title("importance" if names else "too few trials for importances", fontsize=9)
    right.tick_params(labelsize=8)
    return figure
