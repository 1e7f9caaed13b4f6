"""Drawings of one run or several by matplotlib: histograms of scores, ROC, precision-recall and learning curves."""

import math
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from adlight.reports.figures import BLUE, COLOURS, GREY, SERIES, STYLE, VERMILION

BINS = 30
TITLE = 38  # letters above a histogram
CURVES = 9  # metrics of a training that are drawn


@rc_context(STYLE)
def histograms(cells: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw scores of normal and of anomalous images, each class with area 1, their overlap and the threshold."""
    columns = min(len(cells), 4)
    rows = math.ceil(len(cells) / columns)
    figure = Figure(figsize=(3.1 * columns, 2.1 * rows + 0.3), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (title, mine) in zip(grid, cells.items(), strict=False):
        edges = np.histogram_bin_edges(mine["score"], BINS)
        for label, name, colour in ((0, "normal", BLUE), (1, "anomalous", VERMILION)):
            if len(score := mine["score"][mine["label"] == label]):
                weights = np.full(len(score), 1 / len(score))
                axes.hist(
                    score, edges, weights=weights, color=colour, alpha=0.55, label=name, lw=0, histtype="stepfilled"
                )
        shared = overlap(mine)
        words = "one class only" if shared is None else f"overlap {shared:.2f}"
        if mine["threshold"].nunique() == 1:
            if edges[0] <= (threshold := mine["threshold"].iloc[0]) <= edges[-1]:
                axes.axvline(threshold, color="black", ls="--", lw=1, label="threshold")
            else:
                words += ", threshold outside"
        gap = " " if len(title) + len(words) < TITLE else "\n"  # two of them side by side must not meet
        axes.set_title(f"{textwrap.fill(title, TITLE)}:{gap}{words}", fontsize=9)
        axes.tick_params(labelsize=7)
        axes.locator_params(nbins=4)
    for axes in grid[len(cells) :]:
        axes.set_axis_off()
    named = {name: handle for axes in grid for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named, loc="outside upper right", ncols=3, fontsize=8)
    return figure


def overlap(predictions: pd.DataFrame, bins: int = BINS) -> float | None:
    """Compute the area that both classes' histograms share, 0 (apart) to 1 (the same); None if one is missing."""
    if predictions["label"].nunique() < 2:
        return None
    edges = np.histogram_bin_edges(predictions["score"], bins)
    normal, anomalous = (np.histogram(of, edges)[0] / len(of) for _, of in predictions.groupby("label")["score"])
    return float(np.minimum(normal, anomalous).sum())


@rc_context(STYLE)
def ranking_curves(cells: Mapping[str, pd.DataFrame]) -> Figure | None:
    """Draw the ROC and precision-recall curves of those that have both classes, with AUROC and AP in the legend."""
    cells = {name: mine for name, mine in cells.items() if mine["label"].nunique() == 2}
    if not cells:
        return None
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (name, mine) in enumerate(cells.items()):
        counts = mine.groupby("score")["label"].agg(["sum", "count"])[::-1].cumsum()  # from the highest score down
        true, called = counts["sum"], counts["count"]
        tpr = np.append(0, true / true.iloc[-1])
        fpr = np.append(0, (called - true) / (called - true).iloc[-1])
        precision = true / called
        ap = float((np.diff(tpr) * precision).sum())
        label = f"{name} {np.trapezoid(tpr, fpr):.3f}, {ap:.3f}"
        left.plot(fpr, tpr, label=label, lw=1.4, **_line_style(i))
        right.plot(tpr, np.append(precision.iloc[0], precision), drawstyle="steps-pre", lw=1.4, **_line_style(i))
    left.plot([0, 1], [0, 1], ":", color=GREY, lw=1)
    left.set(xlabel="false positive rate", ylabel="true positive rate")
    right.set(xlabel="recall", ylabel="precision")
    for axes in (left, right):
        axes.set(xlim=(-0.01, 1.01), ylim=(0, 1.01), aspect=1)
    figure.legend(loc="outside right upper", fontsize=8, title="AUROC, AP", alignment="left")
    return figure


@rc_context(STYLE)
def learning_curves(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw each metric of some runs' curves over their epochs: a panel per metric, a line per run."""
    metrics = list(dict.fromkeys(name for of in curves.values() for name in of))[:CURVES]
    columns = min(len(metrics), 3)
    rows = math.ceil(len(metrics) / columns)
    figure = Figure(figsize=(3.4 * columns + 1.2, 2.1 * rows + 0.4), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, metric in zip(grid, metrics, strict=False):
        for i, (name, of) in enumerate(curves.items()):
            if metric in of and len(values := of[metric].dropna()):
                marker = "." if len(values) < 30 else ""
                axes.plot(values.index + 1, values, label=name, lw=1.3, marker=marker, **_line_style(i))
        axes.set_title(metric, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.locator_params(axis="x", nbins=5, integer=True)
    for axes in grid[len(metrics) :]:
        axes.set_axis_off()
    named = {name: handle for axes in grid for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named, loc="outside right upper", fontsize=8)
    return figure


def _line_style(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % SERIES], "ls": ("-", "--", ":", "-.")[i // SERIES % 4]}
