"""Optuna searches: their histories and the importance of each setting."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from adlight.reports.collect import READ_ERRORS
from adlight.reports.figures import BLUE, GREY, STYLE, VERMILION
from adlight.reports.rows import OBJECTIVE
from adlight.reports.sections import Picture, embed_figure
from adlight.reports.terminal import TEXT, VALUE
from adlight.runs.find import find_studies


def read_searches(places: Sequence[str]) -> tuple[list[Picture], pd.DataFrame, list[str]]:
    """Plot the history of each search at or below `places`, and rank its settings by importance.

    Importance is the share of the variance of `val/auroc` that a setting explains, as computed by Optuna (fANOVA,
    Hutter 2014; without scikit-learn PED-ANOVA, Watanabe 2023).

    Returns:
        A picture per search, a table with a row per search and setting, and a line for each search that cannot be read.
    """
    pictures, tables, problems = list[Picture](), [pd.DataFrame()], list[str]()
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
                    name, importances = sweep.path.name, _compute_importances(study)
                    best = study.best_trial
                    settings = ", ".join(f"{key}={value}" for key, value in best.params.items())
                    note = f"Best: trial {best.number}, {best.value:.4f}: {settings}"
                    pictures.append(embed_figure(plot_search(trials, importances), name, note))
                    rows = [(name, key, value) for key, value in importances.items()]
                    tables.append(pd.DataFrame(rows, columns=["search", "setting", "importance"]))
        except (*READ_ERRORS, optuna.exceptions.OptunaError, SQLAlchemyError) as error:
            line = str(error).splitlines()[0]
            problems.append(f"search {sweep}: {type(error).__name__}: {line}")
    rows = pd.concat(tables, ignore_index=True)
    if len(rows):
        rows.columns = pd.MultiIndex.from_tuples([("search", TEXT), ("setting", TEXT), ("importance", VALUE)])
    return pictures, rows, problems


def _compute_importances(study: Any) -> dict[str, float]:
    """Compute the importances; empty if there are too few trials or all are equal."""
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
