"""The page's pictures: which runs go into which figure, and figures and panels as data URIs."""

import base64
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from adlight.reports import figures
from adlight.reports.collect import Runs
from adlight.reports.grouping import CLASS_KEYS, SEED, group_by_config, spreads
from adlight.reports.reference import CELL_KEYS, cells
from adlight.runs.folder import RunFolder

WIDEST, MEGABYTES = 1100, 11  # of a picture in pixels; of all of them
CLASS_METRICS = {"precision_at_f1_max": "precision", "recall_at_f1_max": "recall", "f1_max": "F1"}


class Picture(NamedTuple):
    """A picture as it stands in the page, and what is said about it."""

    source: str
    width: int
    title: str
    note: str = ""


def draw_ablations(found: Runs, tolerance: float) -> list[Picture]:
    """Draw AUROC by mask ratio and depth, once for each group of runs that differ in nothing else."""
    runs = found.headlines.join(cells(found.headlines)).dropna(subset="depth")
    drawings = []
    for title, of in group_by_config(runs, SEED, *CELL_KEYS).items():
        paper = found.published[found.published["name"].isin(of["name"])].dropna(subset="depth")
        depths = list(dict.fromkeys(paper["depth"]))  # in the paper's order
        depths += sorted({*of["depth"]} - {*depths}, key=lambda depth: [int(n) for n in depth[1:].split("D")])
        ours, theirs = (
            one.pivot_table(value, "mask_ratio", "depth").reindex(columns=depths)
            for one, value in ((of.dropna(subset="auroc"), "auroc"), (paper, "value"))
        )
        if ours.size and len(of[["mask_ratio", "depth"]].drop_duplicates()) > 1:
            ratio, depth = ours.stack().idxmax()
            best = f"Highest AUROC on the test: {ours.loc[ratio, depth]:.3f} at ratio {ratio:g}, {depth}."
            note = f"{int(ours.notna().sum().sum())} cells. {best}"
            drawings.append(embed_figure(figures.heat_maps(ours, theirs, tolerance), title, note))
    return drawings


def draw_bars(found: Runs) -> list[Picture]:
    """Draw AUROC by category, and precision, recall and F1 by the class that is normal (thesis, fig. 4-5).

    A colour stands for runs that differ in seed and category alone.
    """
    drawings = []
    series = group_by_config(found.headlines, SEED, *CLASS_KEYS)
    if len(table := spreads(found, _first(series), "auroc")) > 1:
        note = "Error bars: 95 % bootstrap interval, or the standard deviation where there are several seeds."
        drawings.append(embed_figure(figures.bars({"AUROC": table}), "AUROC by category", note + _left_out(series)))
    series = {name: of for name, of in series.items() if CLASS_KEYS[1] in of and of[CLASS_KEYS[1]].nunique() > 1}
    panels = {title: spreads(found, _first(series), metric) for metric, title in CLASS_METRICS.items()}
    if any(map(len, panels.values())):
        note = "At the threshold of the best F1, chosen with the test labels in hand: an oracle, as in the paper."
        title = "Precision, recall and F1 by normal class"
        drawings.append(embed_figure(figures.bars(panels, as_bars=True), title, note + _left_out(series)))
    return drawings


def _first(series: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    return dict(list(series.items())[: figures.SERIES])


def _left_out(series: Mapping[str, Any]) -> str:
    return f" The first {figures.SERIES} of {len(series)} series are drawn." if len(series) > figures.SERIES else ""


def draw_scores(title: str, predictions: Mapping[str, pd.DataFrame]) -> list[Picture]:
    """Draw histograms of scores and, where there are both classes, ROC curves."""
    curves = figures.roc_curves(predictions)
    drawings = [embed_figure(figures.histograms(predictions), f"Histograms of scores, {title}")]
    return drawings + ([embed_figure(curves, f"ROC curves, {title}")] if curves else [])


def embed_figure(figure: Figure, title: str, note: str = "") -> Picture:
    """Embed a figure as SVG in a data URI."""
    buffer = io.BytesIO()
    with rc_context(figures.STYLE):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    width = re.search(rb'width="([\d.]+)pt"', buffer.getvalue())
    assert width is not None
    return Picture(_data_uri("svg+xml", buffer), round(float(width[1]) * 4 / 3), title, note)


def embed_panels(found: Runs, detailed: int, each: int) -> tuple[list[tuple[str, list[Picture]]], int]:
    """Embed `each` of the panels of up to `detailed` runs. -> them by run, and how many had no place."""
    having = {name: RunFolder(folder).panel_paths() for name, folder in found.headlines[["name", "folder"]].to_numpy()}
    embedded, room = [], MEGABYTES * 1_000_000
    for name, paths in [(name, paths) for name, paths in having.items() if paths][:detailed]:
        mine = []
        for path in paths[:each]:
            picture = _embed_picture(path, f"{name}: {path.stem}") if room > 0 else None
            if picture is not None:
                mine.append(picture)
                room -= len(picture.source)
        embedded += [(name, mine)] if mine else []
    return embedded, sum(map(len, having.values())) - sum(len(mine) for _, mine in embedded)


def _embed_picture(path: Path, title: str) -> Picture | None:
    """Embed a picture, no wider than the page; None if it cannot be read."""
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except (OSError, ValueError):
        return None
    small.thumbnail((WIDEST, 10 * WIDEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return Picture(_data_uri("jpeg", buffer), small.width, title)


def _data_uri(kind: str, buffer: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
