"""Drift: each day's predictions against the scores that the thresholds were calibrated on."""

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
    """Read a run's predictions, or raise a UserError if a table is damaged.

    -> `day`, `category` (whose thresholds were used), `score`, `above` (whether the score is above the threshold).
    """
    parts = [pd.DataFrame(columns=["day", "category", "score", "above"])]
    for day, path in prediction_tables(run):
        try:
            table = pd.read_csv(path, encoding_errors="surrogateescape").dropna(subset=["score", "threshold"])
            score, threshold = table["score"].astype(float), table["threshold"].astype(float)
            category = table["threshold_source"].astype(str)
        except (LookupError, ValueError) as error:
            raise UserError(
                f"{path} is damaged ({type(error).__name__}: {error}): remove it, or predict again"
            ) from error
        if len(table):
            parts.append(pd.DataFrame({"day": day, "category": category, "score": score, "above": score > threshold}))
    return pd.concat(parts[1:] or parts, ignore_index=True)


def compare_days(
    history: pd.DataFrame, calibration: Mapping[str, Sequence[float]], alpha: float = ALPHA
) -> pd.DataFrame:
    """Compare each day's scores with those of calibration, separately for each category.

    Uses the two-sample Kolmogorov-Smirnov test. P-values are corrected by Holm's method (1979) for all days and
    categories, so that without drift the probability of reporting any is at most `alpha`.

    Returns:
        A row per day and category: `images`, `above` (share above the threshold), `ks` (largest distance between the
        distribution functions), `p` (corrected) and `drifts`. Without scores of calibration, `ks` and `p` are NaN.
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
    """Return a category's calibration scores; those of all categories if its thresholds were pooled or set by hand."""
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
    """Describe each day on which a run's scores have drifted, in a line."""
    tests = int(tested["p"].notna().sum())
    return [
        f"drift: {name}, {row.day}: {row.images} scores of {row.category} differ from calibration "
        f"(Kolmogorov-Smirnov {row.ks:.2f}, p {row.p:.2g} corrected for {tests} tests; {row.above:.1%} above the "
        "threshold)"
        for row in tested[tested["drifts"]].itertuples()
    ]


@rc_context(STYLE)
def plot_drift(history: pd.DataFrame, tested: pd.DataFrame, calibration: Mapping[str, Sequence[float]]) -> Figure:
    """Plot, for each category, each day's histogram of scores below that of calibration, and the share above threshold.

    `history` comes from `read_history`, `tested` from `compare_days`; `calibration` are scores by category.
    """
    categories = sorted(history["category"].unique())
    days: list[datetime.date] = sorted(history["day"].unique())[-DAYS:]
    figure = Figure(figsize=(7.5, (0.9 + 0.34 * (len(days) + 1)) * len(categories)), layout="constrained")
    grid = figure.subplots(len(categories), 2, squeeze=False, width_ratios=(3, 1), sharey="row")
    for (left, right), category in zip(grid, categories, strict=True):
        mine, known = history[history["category"] == category], select_calibration(category, calibration)
        edges = np.histogram_bin_edges(np.concatenate([mine["score"], known]), BINS)
        of = tested[tested["category"] == category].set_index("day")
        rows = [*([("calibration", known, GREY)] if len(known) else [])]
        for day in days:
            if len(score := mine["score"][mine["day"] == day]):
                rows.append((str(day), score.to_numpy(), VERMILION if of.loc[day, "drifts"] else BLUE))
        for place, (_, score, colour) in enumerate(rows):
            height = np.histogram(score, edges)[0]
            left.stairs(-place + 0.85 * height / max(height.max(), 1), edges, baseline=-place, fill=True, color=colour)
        left.set_yticks([-place for place in range(len(rows))], [name for name, *_ in rows], fontsize=8)
        left.set_title(f"scores, {category}", fontsize=9)
        first = len(rows) - sum(day in of.index for day in days)
        shares = [float(of.loc[day, "above"]) for day in days if day in of.index]
        right.barh([-first - i for i in range(len(shares))], shares, 0.6, align="edge", color=BLUE)
        right.set_title("share above", fontsize=9)
        right.set_xlim(0, max(0.1, *shares) if shares else 0.1)
        for axes in (left, right):
            axes.tick_params(labelsize=8)
    return figure
