"""Drawings of the report, as SVG that takes the page's text colour. They know numbers and words, no runs."""

import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from adlight.metrics.image import roc_curve

INK = "#010203"  # becomes the page's text colour
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold a dollar sign
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}
# Okabe & Ito's palette: told apart by colour-blind readers, on white and on black
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, GREY = (
    *("#3b8fd0", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9"),
    "#8c8c8c",
)
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION)
BINS = 30
TITLE = 38  # letters above a histogram


class Spread(NamedTuple):
    """A bar: its value, and how far its error bar reaches down and up."""

    value: float
    below: float = 0.0
    above: float = 0.0


class Scored(NamedTuple):
    """Scores (N,) with labels 0/1 (N,), what they were compared with, and their AUROC as it was measured."""

    title: str
    label: np.ndarray
    score: np.ndarray
    threshold: float | None
    auroc: float | None


def svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as an SVG element for a page; `name` keeps its ids apart from those of the page's other figures."""
    buffer = io.StringIO()
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", text).replace(INK, "currentColor")
    width = re.search(r'width="([\d.]+)pt"', text)
    assert width is not None
    label = alt.replace("&", "and").replace('"', "'").replace("<", "(")
    head = f'<svg role="img" aria-label="{label}" style="max-width: {float(width[1]) * 4 / 3:.0f}px"'
    return head + re.sub(r' (width|height)="[\d.]+pt"', "", text[len("<svg") :], count=2)


def overlap(score: np.ndarray, label: np.ndarray, bins: int = BINS) -> float | None:
    """Area that the histograms of both classes share, 0 (apart) to 1 (the same); None where a class is missing."""
    if len(np.unique(label)) < 2:
        return None
    edges = np.histogram_bin_edges(score, bins)
    normal, anomalous = (np.histogram(score[label == c], edges)[0] / (label == c).sum() for c in (0, 1))
    return float(np.minimum(normal, anomalous).sum())


@rc_context(STYLE)
def histograms(cells: Sequence[Scored]) -> Figure:
    """Scores of normal and of anomalous images, each class with area 1, their overlap and the threshold."""
    columns = min(len(cells), 4)
    rows = math.ceil(len(cells) / columns)
    figure = Figure(figsize=(3.1 * columns, 2.1 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, cell in zip(grid.flat, cells, strict=False):
        edges = np.histogram_bin_edges(cell.score, BINS)
        for c, (name, colour) in enumerate((("normal", BLUE), ("anomalous", VERMILION))):
            if (mine := cell.score[cell.label == c]).size:
                weights = np.full(len(mine), 1 / len(mine))
                axes.hist(mine, edges, weights=weights, color=colour, alpha=0.55, label=name, lw=0)
        if cell.threshold is not None and edges[0] <= cell.threshold <= edges[-1]:
            axes.axvline(cell.threshold, color=INK, ls="--", lw=1, label="threshold")
        shared = overlap(cell.score, cell.label)
        words = "one class only" if shared is None else f"overlap {shared:.2f}"
        if cell.threshold is not None and not edges[0] <= cell.threshold <= edges[-1]:
            words += ", threshold outside"
        gap = " " if len(cell.title) + len(words) < TITLE else "\n"  # two of them side by side must not meet
        axes.set_title(f"{textwrap.fill(cell.title, TITLE)}:{gap}{words}", fontsize=9)
        axes.tick_params(labelsize=7)
        axes.locator_params(nbins=4)
    for axes in list(grid.flat)[len(cells) :]:
        axes.set_axis_off()
    named: dict[str, Any] = {}
    for axes in grid.flat:
        handles, names = axes.get_legend_handles_labels()
        named |= dict(zip(names, handles, strict=True))
    figure.legend(list(named.values()), list(named), loc="outside upper right", ncols=3, fontsize=8)
    return figure


@rc_context(STYLE)
def roc_curves(cells: Sequence[Scored]) -> Figure | None:
    """A curve a cell that has both classes, its AUROC in the legend."""
    cells = [cell for cell in cells if len(np.unique(cell.label)) == 2]
    if not cells:
        return None
    figure = Figure(figsize=(3.6, 3.6))
    axes = figure.subplots()
    for i, cell in enumerate(cells):
        measured = "" if cell.auroc is None else f" {cell.auroc:.3f}"
        style = ("-", "--", ":", "-.")[i // len(COLOURS) % 4]
        fpr, tpr = roc_curve(torch.from_numpy(cell.score), torch.from_numpy(cell.label))
        axes.plot(fpr, tpr, style, color=COLOURS[i % len(COLOURS)], lw=1.4, label=f"{cell.title}{measured}")
    axes.plot([0, 1], [0, 1], ":", color=GREY, lw=1)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.01, 1), ylim=(0, 1.01), aspect=1)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.02), fontsize=8, title="AUROC", alignment="left")
    return figure


@rc_context(STYLE)
def bars(
    categories: Sequence[str],
    panels: Mapping[str, Mapping[str, Mapping[str, Spread]]],
    reference: Mapping[str, Mapping[str, float]],
    as_bars: bool = False,
) -> Figure:
    """Grouped bars, a group a category, a colour a series, a panel a metric; published numbers as marks or as bars.

    Args:
        categories: names along the horizontal axis.
        panels: by the panel's title, by series, by category.
        reference: published numbers by the panel's title, by category.
        as_bars: draw them as one more series instead of marks.
    """
    series = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    slots = len(series) + (as_bars and any(reference.values()))
    width = 0.8 / slots
    longest = 0.6 + 0.07 * max(map(len, series), default=0)  # inches that a name takes in the legend
    wide = max(5.5, min(14, 1.5 + len(categories) * (0.35 + 0.17 * slots)), min(14, longest))
    columns = max(1, min(4, int(wide / longest)))
    tall = 2.3 * len(panels) + 0.35 + 0.17 * math.ceil((len(series) + 1) / columns)
    figure = Figure(figsize=(wide, tall), layout="constrained")
    place = np.arange(len(categories))
    for axes, (title, panel) in zip(figure.subplots(len(panels), squeeze=False).flat, panels.items(), strict=True):
        for i, name in enumerate(series):
            spreads = [panel.get(name, {}).get(category, Spread(math.nan)) for category in categories]
            ends = np.array([(spread.below, spread.above) for spread in spreads]).T
            at = place + (i - (slots - 1) / 2) * width
            style = {"color": COLOURS[i % len(COLOURS)], "label": name, "error_kw": {"ecolor": INK, "elinewidth": 0.9}}
            axes.bar(at, [s.value for s in spreads], width * 0.92, yerr=ends if ends.any() else None, **style)
        published = [reference.get(title, {}).get(category, math.nan) for category in categories]
        if as_bars and slots > len(series):
            axes.bar(place + (slots - 1) / 2 * width, published, width * 0.92, color=GREY, label="paper")
        elif not np.isnan(published).all():
            axes.hlines(published, place - 0.45, place + 0.45, color=INK, lw=1.4, label="paper")
        values = [spread.value for panel_of in panel.values() for spread in panel_of.values()]
        finish(axes, title, categories, [*values, *(value for value in published if not math.isnan(value))])
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=min(columns, len(names)), fontsize=8)
    return figure


def finish(axes: Axes, title: str, categories: Sequence[str], values: Sequence[float]) -> None:
    """Name the axes. Where all bars are high, the axis does not start at 0, and says so."""
    least = min(values, default=0.0)
    start = math.floor((least - 0.05) * 10) / 10 if least > 0.65 else 0.0
    axes.set(ylabel=f"{title}\n(from {start:.1f})" if start else title, ylim=(start, 1.01))
    slanted = max(map(len, categories)) > 4 and len(categories) > 4
    axes.set_xticks(
        range(len(categories)), categories, rotation=35 if slanted else 0, ha="right" if slanted else "center"
    )
    axes.grid(axis="y", color=GREY, alpha=0.3, lw=0.6)
    axes.set_axisbelow(True)


Grid = dict[tuple[float, str], float]


@rc_context(STYLE)
def heat_maps(ours: Grid, paper: Grid, tolerance: float) -> Figure:
    """AUROC by mask ratio (down) and depth (across): ours and, if there is one, the paper's and the difference."""
    ratios = sorted({ratio for ratio, _ in {**ours, **paper}})
    depths = list(dict.fromkeys(depth for _, depth in paper))
    depths += sorted(
        {depth for _, depth in ours} - set(depths), key=lambda depth: [int(n) for n in depth[1:].split("D")]
    )

    def table(of: Grid) -> np.ndarray:
        return np.array([[of.get((ratio, depth), math.nan) for depth in depths] for ratio in ratios])

    panels = [("ours", table(ours))]
    if paper:
        panels += [("paper", table(paper)), ("ours - paper", table(ours) - table(paper))]
    figure = Figure(figsize=((0.62 * len(depths) + 0.9) * len(panels), 0.46 * len(ratios) + 0.9), layout="constrained")
    levels = [value for of in (ours, paper) for value in of.values()]
    for axes, (title, values) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        if title == "ours - paper":
            most = max(np.nanmax(np.abs(values), initial=0.0), 2 * tolerance, 1e-9)
            equal = np.where(np.abs(values) <= tolerance, 0.0, values)  # as far as asked
            colour_cells(axes, colormaps["RdBu"](Normalize(-most, most)(equal)), values, "+.3f")
        else:
            colour_cells(axes, colormaps["viridis"](Normalize(min(levels), max(levels))(values)), values, ".3f")
        axes.set_xticks(range(len(depths)), depths, fontsize=8)
        axes.set_yticks(range(len(ratios)), [f"{ratio:g}" for ratio in ratios])
        axes.set_title(title, fontsize=10)
    figure.axes[0].set_ylabel("mask ratio")
    return figure


def colour_cells(axes: Axes, colours: np.ndarray, values: np.ndarray, form: str) -> None:
    """Draw a table as coloured squares with their numbers; a dash where there is none.

    Args:
        axes: where to.
        colours: RGBA of each cell (rows, columns, 4).
        values: (rows, columns), NaN where there is none.
        form: of the numbers.
    """
    for (y, x), value in np.ndenumerate(values):
        if math.isnan(value):
            axes.text(x, y, "-", ha="center", va="center")
            continue
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colours[y, x], edgecolor="white"))
        dark = colours[y, x, :3] @ (0.299, 0.587, 0.114) < 0.55
        ink = "white" if dark else "black"
        axes.text(x, y, f"{value:{form}}", ha="center", va="center", color=ink, fontsize=8)
    rows, columns = values.shape
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
