"""Drawings of the report by matplotlib: heat maps, bars, histograms of scores, ROC curves."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold a dollar sign
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
# Okabe & Ito's palette, which colour-blind readers can tell apart
BLUE, VERMILION, GREY = "#3b8fd0", "#d55e00", "#8c8c8c"
COLOURS = (BLUE, "#e69f00", "#009e73", "#cc79a7", "#56b4e9", VERMILION)
BINS = 30
SERIES = len(COLOURS)
TITLE = 38  # letters above a histogram


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
                axes.hist(score, edges, weights=weights, color=colour, alpha=0.55, label=name, lw=0)
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
def roc_curves(cells: Mapping[str, pd.DataFrame]) -> Figure | None:
    """Draw the ROC curves of those that have both classes, with their AUROC in the legend."""
    cells = {name: mine for name, mine in cells.items() if mine["label"].nunique() == 2}
    if not cells:
        return None
    figure = Figure(figsize=(3.6, 3.6))
    axes = figure.subplots()
    for i, (name, mine) in enumerate(cells.items()):
        counts = mine.groupby("score")["label"].agg(["sum", "count"])[::-1].cumsum()  # from the highest score down
        tpr = np.append(0, counts["sum"] / counts["sum"].iloc[-1])
        fpr = np.append(0, (counts["count"] - counts["sum"]) / (counts["count"] - counts["sum"]).iloc[-1])
        style = ("-", "--", ":", "-.")[i // SERIES % 4]
        axes.plot(fpr, tpr, style, color=COLOURS[i % SERIES], lw=1.4, label=f"{name} {np.trapezoid(tpr, fpr):.3f}")
    axes.plot([0, 1], [0, 1], ":", color=GREY, lw=1)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.01, 1), ylim=(0, 1.01), aspect=1)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.02), fontsize=8, title="AUROC", alignment="left")
    return figure


@rc_context(STYLE)
def bars(panels: Mapping[str, pd.DataFrame], as_bars: bool = False) -> Figure:
    """Draw `spreads` as grouped bars: a panel per metric, a group per category, a colour per series.

    Published numbers are marks or, with `as_bars`, one more series.
    """
    everything = pd.concat([of for of in panels.values() if len(of)])
    series, categories = list(everything["series"].unique()), list(everything["category"].unique())
    categories = sorted(categories) if as_bars else categories
    slots = len(series) + (as_bars and bool(everything["paper"].notna().any()))
    longest = 0.6 + 0.07 * max(map(len, series))  # inches that a name takes in the legend
    wide = max(5.5, min(14, 1.5 + len(categories) * (0.35 + 0.17 * slots)), min(14, longest))
    columns = max(1, min(4, int(wide / longest)))
    tall = 2.3 * len(panels) + 0.35 + 0.17 * math.ceil((len(series) + 1) / columns)
    figure = Figure(figsize=(wide, tall), layout="constrained")
    place, width = np.arange(len(categories)), 0.8 / slots
    for axes, (title, table) in zip(figure.subplots(len(panels), squeeze=False).flat, panels.items(), strict=True):
        for i, name in enumerate(series):
            mine = table[table["series"] == name].set_index("category").reindex(categories)
            ends = [(mine["value"] - mine["lower"]).clip(0), (mine["upper"] - mine["value"]).clip(0)]
            at = place + (i - (slots - 1) / 2) * width
            style = {"color": COLOURS[i], "label": name, "error_kw": {"elinewidth": 0.9}}
            axes.bar(at, mine["value"], width * 0.92, yerr=np.nan_to_num(ends), **style)
        paper = table.groupby("category")["paper"].first().reindex(categories)
        if as_bars and slots > len(series):
            axes.bar(place + (slots - 1) / 2 * width, paper, width * 0.92, color=GREY, label="paper")
        elif paper.notna().any():
            axes.hlines(paper, place - 0.45, place + 0.45, color="black", lw=1.4, label="paper")
        _finish(axes, title, categories, min(table["value"].min(), paper.min(), key=lambda v: (math.isnan(v), v)))
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=min(columns, len(names)), fontsize=8)
    return figure


def _finish(axes: Axes, title: str, categories: Sequence[str], least: float) -> None:
    """Name the axes. Where all bars are high, the axis does not start at 0, and says so."""
    start = math.floor((least - 0.05) * 10) / 10 if least > 0.65 else 0.0
    axes.set(ylabel=f"{title}\n(from {start:.1f})" if start else title, ylim=(start, 1.01))
    slanted = max(map(len, categories)) > 4 and len(categories) > 4
    rotation, side = (35, "right") if slanted else (0, "center")
    axes.set_xticks(range(len(categories)), categories, rotation=rotation, ha=side)
    axes.grid(axis="y", color=GREY, alpha=0.3, lw=0.6)
    axes.set_axisbelow(True)


@rc_context(STYLE)
def heat_maps(ours: pd.DataFrame, paper: pd.DataFrame, tolerance: float) -> Figure:
    """Draw AUROC by mask ratio (rows) and depth (columns): ours and, if there is a paper's, that and the difference."""
    panels, columns = {"ours": ours}, list(dict.fromkeys([*paper, *ours]))
    if len(paper):
        ours, paper = (of.reindex(ours.index.union(paper.index), columns=columns) for of in (ours, paper))
        panels = {"ours": ours, "paper": paper, "ours - paper": ours - paper}
    size = (0.62 * len(columns) + 0.9) * len(panels), 0.46 * len(ours) + 0.9
    figure = Figure(figsize=size, layout="constrained")
    levels = pd.concat([ours.stack(), paper.stack()])
    for axes, (title, values) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True):
        cells = values.to_numpy(float)
        if title == "ours - paper":
            most = max(np.nanmax(np.abs(cells), initial=0.0), 2 * tolerance, 1e-9)
            equal = np.where(np.abs(cells) <= tolerance, 0.0, cells)  # within the tolerance: white
            _colour_cells(axes, colormaps["RdBu"](Normalize(-most, most)(equal)), cells, "+.3f")
        else:
            _colour_cells(axes, colormaps["viridis"](Normalize(levels.min(), levels.max())(cells)), cells, ".3f")
        axes.set_xticks(range(len(values.columns)), values.columns, fontsize=8)
        axes.set_yticks(range(len(values)), [f"{ratio:g}" for ratio in values.index])
        axes.set_title(title, fontsize=10)
    figure.axes[0].set_ylabel("mask ratio")
    return figure


def _colour_cells(axes: Axes, colours: np.ndarray, values: np.ndarray, form: str) -> None:
    """Draw values (rows, columns) as squares of their RGBA colours (rows, columns, 4); a dash where there is none."""
    colours[np.isnan(values)] = 1
    axes.pcolormesh(np.arange(values.shape[1] + 1) - 0.5, np.arange(values.shape[0] + 1) - 0.5, colours, edgecolor="w")
    for (y, x), value in np.ndenumerate(values):
        ink = "white" if colours[y, x, :3] @ (0.299, 0.587, 0.114) < 0.55 else "black"
        text = "-" if math.isnan(value) else f"{value:{form}}"
        axes.text(x, y, text, ha="center", va="center", color=ink, fontsize=8)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
