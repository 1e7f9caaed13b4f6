"""Drift: compare each day's predictions with the scores on which the thresholds were calibrated."""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy.stats import ks_2samp

from adlight.reports.figures import BLUE, GREY, STYLE, VERMILION
from adlight.runs.predictions import prediction_tables
from adlight.types import UserError

ALPHA = 0.01  # family-wise error rate of all tests of a run
COLUMNS = ["day", "category", "images", "above", "ks", "p", "drifts"]
DAYS, BINS = 30, 30  # latest days shown in a figure, bins of a histogram


def read_history(run: Path) -> pd.DataFrame:
    """Read a run's predictions; raise a UserError if a table is damaged.

    Returns:
        A row per image: `day`, `category` (whose threshold was used), `score` and `above` (the threshold).
    """
    parts = [pd.DataFrame(columns=["day", "category", "score", "above"])]
    for day, path in prediction_tables(run):
        try:
            # as text, because a category may be called 01 or NA
            table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding_errors="surrogateescape")
            table = table[(table["score"] != "") & (table["threshold"] != "")]
            score, threshold = table["score"].astype(float), table["threshold"].astype(float)
            category = table["threshold_source"]
        except (LookupError, ValueError) as error:
            raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): remove it") from error
        if len(table):
            parts.append(pd.DataFrame({"day": day, "category": category, "score": score, "above": score > threshold}))
    return pd.concat(parts[1:] or parts, ignore_index=True)


def compare_days(
    history: pd.DataFrame, calibration: Mapping[str, Sequence[float]], alpha: float = ALPHA
) -> pd.DataFrame:
    """Compare each day's scores with the calibration scores by Kolmogorov-Smirnov tests, separately for each category.

    P-values are corrected for all days and categories by Holm's method (1979), so that without drift the probability of
    reporting any drift is at most `alpha`.

    Returns:
        A row per day and category: `images`, `above` (share above the threshold), `ks` (largest distance between the
        distribution functions), `p` (corrected) and `drifts`. Without calibration scores, `ks` and `p` are NaN.
    """
    rows = []
    for (day, category), mine in history.groupby(["day", "category"], sort=True):
        known = select_calibration(str(category), calibration)
        found = ks_2samp(mine["score"], known) if len(known) else None
        ks, p = (float(found.statistic), float(found.pvalue)) if found else (np.nan, np.nan)
        rows.append((day, category, len(mine), float(mine["above"].mean()), ks, p, False))
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["p"] = holm(table["p"].to_numpy(float))
    table["drifts"] = table["p"] < alpha
    return table


def select_calibration(category: str, calibration: Mapping[str, Sequence[float]]) -> np.ndarray:
    """Return a category's calibration scores, or those of all categories if its threshold was pooled or set by hand."""
    name = category.removeprefix("labels of ")
    chosen = [calibration[name]] if name in calibration else list(calibration.values())
    return np.concatenate([np.empty(0), *map(np.asarray, chosen)])


def holm(p: np.ndarray) -> np.ndarray:
    """Correct p-values (n,) for multiple testing (Holm 1979); NaN entries are not counted and stay NaN."""
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    corrected = np.full(len(p), np.nan)
    steps = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1, np.maximum.accumulate(steps)) if len(order) else steps
    return corrected


def describe_drift(name: str, tested: pd.DataFrame) -> list[str]:
    """Return a line for each day and category in which a run's scores have drifted."""
    tests = int(tested["p"].notna().sum())
    return [
        f"drift: {name}, {row.day}: {row.images} scores of {row.category} differ from calibration (Kolmogorov-Smirnov "
        f"{row.ks:.2f}, p {row.p:.2g} corrected for {tests} tests; {row.above:.1%} above the threshold)"
        for row in tested[tested["drifts"]].itertuples()
    ]


@rc_context(STYLE)
def plot_drift(history: pd.DataFrame, tested: pd.DataFrame, calibration: Mapping[str, Sequence[float]]) -> Figure:
    """Plot histograms of the calibration scores and of each day's scores, and each day's share above the threshold.

    `history` comes from `read_history`, `tested` from `compare_days`; `calibration` holds scores by category, each of
    which has a row of its own in the figure.
    """
    categories = sorted(history["category"].unique())
    days: list[datetime.date] = sorted(history["day"].unique())[-DAYS:]
    figure = Figure(figsize=(7.5, (0.9 + 0.34 * (len(days) + 1)) * len(categories)), layout="constrained")
    grid = figure.subplots(len(categories), 2, squeeze=False, width_ratios=(3, 1), sharey="row")
    for (left, right), category in zip(grid, categories, strict=True):
        mine, known = history[history["category"] == category], select_calibration(category, calibration)
        edges = np.histogram_bin_edges(np.concatenate([mine["score"], known]), BINS)
        by_day = tested[tested["category"] == category].set_index("day")
        rows = [("calibration", known, GREY)] if len(known) else []
        for day in days:
            if len(score := mine["score"][mine["day"] == day]):
                rows.append((str(day), score.to_numpy(), VERMILION if by_day.loc[day, "drifts"] else BLUE))
        for place, (_, score, colour) in enumerate(rows):
            height = np.histogram(score, edges)[0]
            left.stairs(-place + 0.85 * height / max(height.max(), 1), edges, baseline=-place, fill=True, color=colour)
        left.set_yticks([-place for place in range(len(rows))], [name for name, *_ in rows], fontsize=8)
        left.set_title(f"scores, {category}", fontsize=9)
        shares = [float(by_day.loc[day, "above"]) for day in days if day in by_day.index]
        first = len(rows) - len(shares)
        right.barh([-first - i for i in range(len(shares))], shares, 0.6, align="edge", color=BLUE)
        right.set_title("share above", fontsize=9)
        right.set_xlim(0, max(0.1, *shares) if shares else 0.1)
        for axes in (left, right):
            axes.tick_params(labelsize=8)
    return figure
