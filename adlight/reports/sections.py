"""The page's pictures: which runs go into which figure; figures as data URIs, panels by their place."""

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
from adlight.reports.collect import DAMAGE, Runs
from adlight.reports.grouping import CLASS_KEYS, SEED, group_by_config, spreads
from adlight.reports.reference import CELL_KEYS, cells
from adlight.reports.rows import OBJECTIVE
from adlight.runs.folder import RunFolder

WIDEST = 1100  # of a picture, in pixels
NOT_DRAWN = ("epoch", "step", "generator_steps")  # columns of a curve that count
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
            other = next(filter(None, paper["protocol"]), "")
            note = f"{int(ours.notna().sum().sum())} cells. {_choice_of_cell(of)}"
            note += f" The paper's are of another protocol (ours: {other})." if other else ""
            drawings.append(embed_figure(figures.heat_maps(ours, theirs, tolerance, bool(other)), title, note))
    return drawings


def _choice_of_cell(runs: pd.DataFrame) -> str:
    if OBJECTIVE not in runs or runs[OBJECTIVE].isna().all():
        return ""
    found = runs.groupby(["mask_ratio", "depth"])[[OBJECTIVE, "auroc"]].mean()
    ratio, depth = found[OBJECTIVE].idxmax()
    best, auroc = found.loc[(ratio, depth)]
    return f"{OBJECTIVE} chooses ratio {ratio:g}, {depth}: {best:.3f}, and AUROC {auroc:.3f} on the test."


def draw_learning(found: Runs, detailed: int) -> list[Picture]:
    """Draw the learning curves of up to `detailed` runs, those of a stage before the detector apart."""
    stages = dict[str, dict[str, pd.DataFrame]]()
    for name, folder in found.headlines[["name", "folder"]].to_numpy():
        for path in RunFolder(folder).curve_paths:
            try:
                table = pd.read_csv(path).set_index("epoch")
                numbers = table.drop(columns=[one for one in NOT_DRAWN if one in table]).astype(float)
            except DAMAGE:  # a curve is no result
                continue
            if len(numbers) and len(numbers.columns):
                stages.setdefault(path.name, {})[name] = numbers
    drawn = {stage: dict(list(of.items())[:detailed]) for stage, of in stages.items()}
    return [embed_figure(curves.learning_curves(of), stage) for stage, of in drawn.items() if of]


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
    """Draw histograms of scores and, where there are both classes, ROC and precision-recall curves."""
    ranking = curves.ranking_curves(predictions)
    drawings = [embed_figure(curves.histograms(predictions), f"Histograms of scores, {title}")]
    return drawings + ([embed_figure(ranking, f"ROC and precision-recall curves, {title}")] if ranking else [])


def embed_figure(figure: Figure, title: str, note: str = "") -> Picture:
    """Embed a figure as SVG in a data URI."""
    buffer, texts = io.BytesIO(), cast(list[Text], figure.findobj(Text))
    for text in texts:
        text.set_text(figures.legible(text.get_text()))
    with rc_context(figures.STYLE):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    width = re.search(rb'width="([\d.]+)pt"', buffer.getvalue())
    assert width is not None
    return Picture(_data_uri("svg+xml", buffer), round(float(width[1]) * 4 / 3), title, note)


def link_panels(found: Runs, detailed: int, each: int, folder: Path) -> tuple[list[tuple[str, list[Picture]]], int]:
    """Link `each` of the panels of up to `detailed` runs from a page in `folder`. -> them by run, how many are left.

    One that cannot be read is passed over.
    """
    having = {name: RunFolder(run).panel_paths() for name, run in found.headlines[["name", "folder"]].to_numpy()}
    linked = []
    for name, paths in [(name, paths) for name, paths in having.items() if paths][:detailed]:
        mine = []
        for path in paths[:each]:
            try:
                with Image.open(path) as image:
                    mine.append(Picture(link(path, folder), min(image.width, WIDEST), f"{name}: {path.stem}"))
            except (OSError, ValueError):
                continue
        linked += [(name, mine)] if mine else []
    return linked, sum(map(len, having.values())) - sum(len(mine) for _, mine in linked)


def link(path: str | Path, folder: Path) -> str:
    """Write a file's or folder's place as seen from a page in `folder`."""
    return quote(Path(os.path.relpath(path, folder)).as_posix())


def _data_uri(kind: str, buffer: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
