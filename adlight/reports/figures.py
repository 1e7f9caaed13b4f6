"""Figures of metrics as bars and heat maps, and the style of all figures."""

import math
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
    "text.parse_math": False,  # names may contain dollar signs
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
# after the colour-blind safe palette of Okabe and Ito
BLUE, VERMILION, GREY = "#3b8fd0", "#d55e00", "#8c8c8c"
COLOURS = (BLUE, "#e69f00", "#009e73", "#cc79a7", "#56b4e9", VERMILION)
SERIES = len(COLOURS)


@rc_context(STYLE)
def plot_bars(panels: Mapping[str, pd.DataFrame], as_bars: bool = False) -> Figure:
    """Plot grouped bars: a panel per metric, a group per category, a colour per series.

    `panels` holds tables of `grouping.average_series` by the title of their metric. Published numbers are drawn as
    lines or, with `as_bars`, as another series.
    """
    rows = pd.concat([table for table in panels.values() if len(table)])
    series, categories = list(rows["series"].unique()), list(rows["category"].unique())
    categories = sorted(categories) if as_bars else categories
    slots = len(series) + (as_bars and bool(rows["paper"].notna().any()))
    longest = 0.6 + 0.07 * max(map(len, series))  # inches of the longest name in the legend
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


def legible(name: str) -> str:
    """Escape bytes of a file name that are not valid UTF-8, which no font can show."""
    return name.encode(errors="backslashreplace").decode()


def _finish(axes: Axes, title: str, categories: Sequence[str], least: float) -> None:
    """Label the axes; if all bars are high, the y-axis starts above 0, which its label mentions."""
    start = math.floor((least - 0.05) * 10) / 10 if least > 0.65 else 0.0
    axes.set(ylabel=f"{title}\n(from {start:.1f})" if start else title, ylim=(start, 1.01))
    slanted = max(map(len, categories)) > 4 and len(categories) > 4
    rotation, side = (35, "right") if slanted else (0, "center")
    axes.set_xticks(range(len(categories)), list(map(legible, categories)), rotation=rotation, ha=side)
    axes.grid(axis="y", color=GREY, alpha=0.3, lw=0.6)
    axes.set_axisbelow(True)


@rc_context(STYLE)
def plot_heat_maps(ours: pd.DataFrame, paper: pd.DataFrame, tolerance: float, other_protocol: bool = False) -> Figure:
    """Plot AUROC by mask ratio (rows) and depth (columns): ours, the paper's unless it is empty, and the difference.

    Differences up to `tolerance` are white; they are not drawn if the paper used another protocol.
    """
    panels, columns = {"ours": ours}, list(dict.fromkeys([*paper, *ours]))
    if len(paper):
        ratios = ours.index.union(paper.index)
        ours, paper = ours.reindex(ratios, columns=columns), paper.reindex(ratios, columns=columns)
        last = {"paper (another protocol)": paper} if other_protocol else {"paper": paper, "ours - paper": ours - paper}
        panels = {"ours": ours, **last}
    size = (0.62 * len(columns) + 0.9) * len(panels), 0.46 * len(ours) + 0.9
    figure = Figure(figsize=size, layout="constrained")
    levels = pd.concat([ours.stack(), paper.stack()])
    for axes, (title, values) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True):
        cells = values.to_numpy(float)
        if title == "ours - paper":
            most = max(np.nanmax(np.abs(cells), initial=0.0), 2 * tolerance, 1e-9)
            shown = np.where(np.abs(cells) <= tolerance, 0.0, cells)
            _colour_cells(axes, colormaps["RdBu"](Normalize(-most, most)(shown)), cells, "+.3f")
        else:
            _colour_cells(axes, colormaps["viridis"](Normalize(levels.min(), levels.max())(cells)), cells, ".3f")
        axes.set_xticks(range(len(values.columns)), values.columns, fontsize=8)
        axes.set_yticks(range(len(values)), [f"{ratio:g}" for ratio in values.index])
        axes.set_title(title, fontsize=10)
    figure.axes[0].set_ylabel("mask ratio")
    return figure


def _colour_cells(axes: Axes, colours: np.ndarray, values: np.ndarray, form: str) -> None:
    """Write values (rows, columns) in squares with RGBA colours (rows, columns, 4); NaN becomes a dash."""
    colours[np.isnan(values)] = 1
    axes.pcolormesh(np.arange(values.shape[1] + 1) - 0.5, np.arange(values.shape[0] + 1) - 0.5, colours, edgecolor="w")
    for (y, x), value in np.ndenumerate(values):
        ink = "white" if colours[y, x, :3] @ (0.299, 0.587, 0.114) < 0.55 else "black"
        text = "-" if math.isnan(value) else f"{value:{form}}"
        axes.text(x, y, text, ha="center", va="center", color=ink, fontsize=8)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
