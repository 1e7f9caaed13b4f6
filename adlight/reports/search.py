"""Searches by Optuna: what their trials reached, and which settings mattered."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from adlight.reports.collect import DAMAGE
from adlight.reports.figures import BLUE, GREY, STYLE, VERMILION
from adlight.reports.rows import OBJECTIVE
from adlight.reports.sections import Picture, embed_figure
from adlight.reports.terminal import TEXT, VALUE
from adlight.runs.find import find_studies


def read_searches(places: Sequence[str]) -> tuple[list[Picture], pd.DataFrame, list[str]]:
    """Draw the history of each search at or below `places`, and rank its settings by how much they mattered.

    Importance is the share of the variance of `val/auroc` that a setting explains (fANOVA, Hutter 2014; PED-ANOVA,
    Watanabe 2023, without scikit-learn), as Optuna computes it.

    Returns:
        A drawing a search, a table with a row per search and setting, and what could not be read.
    """
    drawings, tables, lines = list[Picture](), [pd.DataFrame()], list[str]()
    for sweep in find_studies(places):
        try:
            import optuna
            from sqlalchemy.exc import SQLAlchemyError  # of Optuna's storage
        except ImportError:
            lines.append(f"search {sweep}: pip install 'adlight[optuna]' shows its history and importances")
            continue
        optuna.logging.set_verbosity(logging.WARNING)
        try:
            storage = f"sqlite:///{sweep.study_path}"
            for summary in optuna.get_all_study_summaries(storage):
                study = optuna.load_study(study_name=summary.study_name, storage=storage)
                trials = [one for one in study.trials if one.state == optuna.trial.TrialState.COMPLETE]
                if trials:
                    name, importances = sweep.path.name, _importances(study)
                    best = study.best_trial
                    note = f"Best: trial {best.number}, {best.value:.4f}: {_words(best.params)}"
                    drawings.append(embed_figure(draw(trials, importances), name, note))
                    rows = [(name, key, value) for key, value in importances.items()]
                    tables.append(pd.DataFrame(rows, columns=["search", "setting", "importance"]))
        except (*DAMAGE, optuna.exceptions.OptunaError, SQLAlchemyError) as error:
            line = str(error).splitlines()[0]
            lines.append(f"search {sweep}: {type(error).__name__}: {line}")
    rows = pd.concat(tables, ignore_index=True)
    if len(rows):
        rows.columns = pd.MultiIndex.from_tuples([("search", TEXT), ("setting", TEXT), ("importance", VALUE)])
    return drawings, rows, lines


def _importances(study: Any) -> dict[str, float]:
    """Compute importances; none where the trials are too few, or all alike."""
    import optuna

    try:
        return optuna.importance.get_param_importances(study)
    except ImportError:  # fANOVA needs scikit-learn
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError):
        return {}


def _words(params: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in params.items())


@rc_context(STYLE)
def draw(trials: Sequence[Any], importances: dict[str, float]) -> Figure:
    """Draw what each trial reached and the best so far, beside the importances of the settings."""
    figure = Figure(figsize=(8.5, max(2.6, 0.3 * len(importances) + 1)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    number, value = np.array([(one.number, one.value) for one in trials]).T
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
