"""Figures of scores and learning curves: histograms, ROC and precision-recall curves, metrics over epochs."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adlight.reports.figures import BLUE, COLOURS, GREY, SERIES, STYLE, VERMILION

BINS = 30
TITLE = 38  # characters in a line of a histogram's title
CURVES = 9  # largest number of metrics in a figure of learning curves


@rc_context(STYLE)
def plot_histograms(cells: Mapping[str, pd.DataFrame]) -> Figure:
    """Plot histograms of the scores of normal and anomalous images, each of area 1, with overlap and threshold."""
    figure, grid = _make_grid(len(cells), 4, 3.1, (0, 0.3))
    for axes, (title, predictions) in zip(grid, cells.items(), strict=True):
        edges = np.histogram_bin_edges(predictions["score"], BINS)
        for label, name, colour in ((0, "normal", BLUE), (1, "anomalous", VERMILION)):
            if len(score := predictions["score"][predictions["label"] == label]):
                weights = np.full(len(score), 1 / len(score))
                style: dict[str, Any] = {"color": colour, "alpha": 0.55, "lw": 0, "histtype": "stepfilled"}
                axes.hist(score, edges.tolist(), weights=weights, label=name, **style)
        overlap = measure_overlap(predictions)
        note = "one class only" if overlap is None else f"overlap {overlap:.2f}"
        if predictions["threshold"].nunique() == 1:
            if edges[0] <= (threshold := predictions["threshold"].iloc[0]) <= edges[-1]:
                axes.axvline(threshold, color="black", ls="--", lw=1, label="threshold")
            else:
                note += ", threshold outside"
        gap = " " if len(title) + len(note) < TITLE else "\n"  # titles side by side must not touch
        axes.set_title(f"{textwrap.fill(title, TITLE)}:{gap}{note}", fontsize=9)
        axes.tick_params(labelsize=7)
        axes.locator_params(nbins=4)
    figure.legend(*_collect_legend(grid), loc="outside upper right", ncols=3, fontsize=8)
    return figure


def measure_overlap(predictions: pd.DataFrame, bins: int = BINS) -> float | None:
    """Measure the overlap of both classes' histograms, 0 (disjoint) to 1 (equal); None if a class is missing."""
    if predictions["label"].nunique() < 2:
        return None
    edges = np.histogram_bin_edges(predictions["score"], bins)
    classes = predictions.groupby("label")["score"]
    normal, anomalous = (np.histogram(score, edges)[0] / len(score) for _, score in classes)
    return float(np.minimum(normal, anomalous).sum())


@rc_context(STYLE)
def plot_ranking_curves(cells: Mapping[str, pd.DataFrame]) -> Figure | None:
    """Plot ROC and precision-recall curves, with AUROC and AP in the legend; None if no cell has both classes."""
    cells = {name: predictions for name, predictions in cells.items() if predictions["label"].nunique() == 2}
    if not cells:
        return None
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (name, predictions) in enumerate(cells.items()):
        counts = predictions.groupby("score")["label"].agg(["sum", "count"])[::-1].cumsum()  # from high to low scores
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
def plot_learning_curves(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Plot the metrics of runs over their epochs: a panel per metric, a line per run."""
    metrics = list(dict.fromkeys(name for table in curves.values() for name in table))[:CURVES]
    figure, grid = _make_grid(len(metrics), 3, 3.4, (1.2, 0.4))
    for axes, metric in zip(grid, metrics, strict=True):
        for i, (name, table) in enumerate(curves.items()):
            if metric in table and len(values := table[metric].dropna()):
                marker = "." if len(values) < 30 else ""
                axes.plot(values.index + 1, values, label=name, lw=1.3, marker=marker, **_line_style(i))
        axes.set_title(metric, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.locator_params(axis="x", nbins=5, integer=True)
    figure.legend(*_collect_legend(grid), loc="outside right upper", fontsize=8)
    return figure


def _make_grid(count: int, most: int, width: float, margin: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """Make a figure of `count` axes, up to `most` in a row, each `width` inches wide; `margin` is for the legend."""
    columns = min(count, most)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns + margin[0], 2.1 * rows + margin[1]), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[count:]:
        axes.set_axis_off()
    return figure, grid[:count]


def _collect_legend(grid: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    """Collect handles and labels for the legend of a whole figure, each label once."""
    named = {name: handle for axes in grid for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    return list(named.values()), list(named)


def _line_style(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % SERIES], "ls": ("-", "--", ":", "-.")[i // SERIES % 4]}
