"""The page's pictures: choose the runs for each figure, embed figures as data URIs, and link panels."""

import base64
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import quote

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from adlight.reports import curves, figures
from adlight.reports.collect import READ_ERRORS, Runs
from adlight.reports.grouping import CLASS_KEYS, SEED, average_series, group_by_config
from adlight.reports.reference import CELL_KEYS, locate_cells
from adlight.runs.folder import RunFolder
from adlight.runs.tables import OBJECTIVE

WIDEST = 1100  # largest width of a picture, in pixels
NOT_DRAWN = ("epoch", "step", "generator_steps")  # counters among a curve's columns
CLASS_METRICS = {"precision_at_f1_max": "precision", "recall_at_f1_max": "recall", "f1_max": "F1"}


class Picture(NamedTuple):
    """A picture of the page."""

    source: str  # URL relative to the page, or data URI
    width: int  # in pixels
    title: str
    note: str = ""  # text below the picture


def draw_ablations(runs: Runs, tolerance: float) -> list[Picture]:
    """Draw AUROC by mask ratio and depth: a figure for each group of runs that agree in all other settings."""
    cells = runs.headlines.join(locate_cells(runs.headlines)).dropna(subset="depth")
    pictures = []
    for title, group in group_by_config(cells, SEED, *CELL_KEYS).items():
        paper = runs.published[runs.published["name"].isin(group["name"])].dropna(subset="depth")
        depths = list(dict.fromkeys(paper["depth"]))  # in the paper's order
        depths += sorted({*group["depth"]} - {*depths}, key=lambda depth: [int(n) for n in depth[1:].split("D")])
        scored = group.dropna(subset="auroc")
        ours = scored.pivot_table("auroc", "mask_ratio", "depth").reindex(columns=depths)
        published = paper.pivot_table("value", "mask_ratio", "depth").reindex(columns=depths)
        if ours.size and len(group[["mask_ratio", "depth"]].drop_duplicates()) > 1:
            mismatch = next(filter(None, paper["protocol"]), "")
            note = f"{int(ours.notna().sum().sum())} cells. {_describe_choice(group)}"
            note += f" The paper used another protocol (ours: {mismatch})." if mismatch else ""
            figure = figures.plot_heat_maps(ours, published, tolerance, bool(mismatch))
            pictures.append(embed_figure(figure, title, note))
    return pictures


def _describe_choice(runs: pd.DataFrame) -> str:
    # names the cell with the best objective
    if OBJECTIVE not in runs or runs[OBJECTIVE].isna().all():
        return ""
    cells = runs.groupby(["mask_ratio", "depth"])[[OBJECTIVE, "auroc"]].mean()
    ratio, depth = cells[OBJECTIVE].idxmax()
    best, auroc = cells.loc[(ratio, depth)]
    return f"{OBJECTIVE} chooses ratio {ratio:g}, {depth}: {best:.3f}, and AUROC {auroc:.3f} on the test."


def draw_learning(runs: Runs, detailed: int) -> list[Picture]:
    """Draw the learning curves of up to `detailed` runs, in a figure per stage of the training."""
    stages = dict[str, dict[str, pd.DataFrame]]()
    for name, folder in runs.headlines[["name", "folder"]].to_numpy():
        for path in RunFolder(folder).curve_paths:
            try:
                table = pd.read_csv(path).set_index("epoch")
                numbers = table.drop(columns=list(NOT_DRAWN), errors="ignore").astype(float)
            except READ_ERRORS:  # the page is useful without this curve
                continue
            if len(numbers) and len(numbers.columns):
                stages.setdefault(path.name, {})[name] = numbers
    drawn = {stage: dict(list(tables.items())[:detailed]) for stage, tables in stages.items()}
    return [embed_figure(curves.plot_learning_curves(tables), stage) for stage, tables in drawn.items() if tables]


def draw_bars(runs: Runs) -> list[Picture]:
    """Draw AUROC by category, and precision, recall and F1 by normal class (thesis, fig. 4-5).

    Runs that differ only in seed and category form a series with a colour of its own.
    """
    pictures = []
    series = group_by_config(runs.headlines, SEED, *CLASS_KEYS)
    if len(table := average_series(runs, _limit(series), "auroc")) > 1:
        note = "Error bars: 95 % bootstrap interval, or the standard deviation where there are several seeds."
        figure = figures.plot_bars({"AUROC": table})
        pictures.append(embed_figure(figure, "AUROC by category", note + _describe_limit(series)))
    normal = CLASS_KEYS[1]
    series = {name: group for name, group in series.items() if normal in group and group[normal].nunique() > 1}
    panels = {title: average_series(runs, _limit(series), metric) for metric, title in CLASS_METRICS.items()}
    if any(map(len, panels.values())):
        note = "At the threshold of the best F1 on the test labels: an oracle, as in the paper."
        title = "Precision, recall and F1 by normal class"
        pictures.append(embed_figure(figures.plot_bars(panels, as_bars=True), title, note + _describe_limit(series)))
    return pictures


def _limit(series: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    return dict(list(series.items())[: figures.SERIES])


def _describe_limit(series: Mapping[str, Any]) -> str:
    return f" The first {figures.SERIES} of {len(series)} series are drawn." if len(series) > figures.SERIES else ""


def draw_scores(title: str, predictions: Mapping[str, pd.DataFrame]) -> list[Picture]:
    """Draw histograms of scores and, where both classes occur, ROC and precision-recall curves."""
    pictures = [embed_figure(curves.plot_histograms(predictions), f"Histograms of scores, {title}")]
    if ranking := curves.plot_ranking_curves(predictions):
        pictures.append(embed_figure(ranking, f"ROC and precision-recall curves, {title}"))
    return pictures


def embed_figure(figure: Figure, title: str, note: str = "") -> Picture:
    """Embed a figure as SVG in a data URI."""
    buffer, texts = io.BytesIO(), cast(list[Text], figure.findobj(Text))
    for text in texts:
        text.set_text(figures.legible(text.get_text()))
    with rc_context(figures.STYLE):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    width = re.search(rb'width="([\d.]+)pt"', buffer.getvalue())
    assert width is not None
    return Picture(to_data_uri("svg+xml", buffer), round(float(width[1]) * 4 / 3), title, note)


def link_panels(runs: Runs, detailed: int, each: int, folder: Path) -> tuple[list[tuple[str, list[Picture]]], int]:
    """Link up to `each` panels of up to `detailed` runs from a page in `folder`, skipping unreadable panels.

    Returns:
        Names of runs with their panels, and the number of panels that are not linked.
    """
    panels = {name: RunFolder(run).panel_paths() for name, run in runs.headlines[["name", "folder"]].to_numpy()}
    linked = []
    for name in [name for name, paths in panels.items() if paths][:detailed]:
        pictures = []
        for path in panels[name][:each]:
            try:
                pictures.append(link_picture(path, folder, f"{name}: {path.stem}"))
            except (OSError, ValueError):
                continue
        linked += [(name, pictures)] if pictures else []
    return linked, sum(map(len, panels.values())) - sum(len(pictures) for _, pictures in linked)


def link_picture(path: Path, folder: Path, title: str) -> Picture:
    """Link an image file from a page in `folder`."""
    with Image.open(path) as image:
        return Picture(link(path, folder), min(image.width, WIDEST), title)


def link(path: str | Path, folder: Path) -> str:
    """Return the URL of a file or folder, relative to a page in `folder`."""
    return quote(Path(os.path.relpath(path, folder)).as_posix())


def to_data_uri(kind: str, buffer: io.BytesIO) -> str:
    """Encode an image of the given MIME subtype as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
