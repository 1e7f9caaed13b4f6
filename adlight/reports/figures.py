"""Which runs belong into which drawing of the report."""

from collections.abc import Iterator, Sequence, Sized
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np

from adlight.reports import plots
from adlight.reports.collect import CLASS_KEYS, Row, Run
from adlight.reports.groups import alike, common_labels
from adlight.reports.plots import Scored, Spread
from adlight.reports.reference import cell
from adlight.reports.summary import Report

CELL_KEYS = ("model.mask_ratio", "model.network.encoder_depth", "model.network.decoder_depth")
CLASS_METRICS = {"precision_at_f1_max": "precision", "recall_at_f1_max": "recall", "f1_max": "F1"}
SERIES = 6  # colours that can be told apart
CELLS = 16  # histograms in one drawing


class Drawing(NamedTuple):
    """A drawing for the page: SVG, and what is to be said about it."""

    title: str
    svg: str
    note: str = ""


def ablations(report: Report) -> list[Drawing]:
    """Heat maps of AUROC by mask ratio and depth, one for each group of runs that differ in nothing else."""
    groups = alike([run for run in report.runs if cell(run)], "seed", *CELL_KEYS)
    groups = [group for group in groups if len({cell(run) for run in group}) > 1]
    found: list[Drawing] = []
    for group, title in zip(groups, common_labels(groups, "seed", *CELL_KEYS), strict=True):
        values: dict[tuple[float, str], list[float]] = {}
        paper: plots.Grid = {}
        for run in group:
            row, place = run.headline, cell(run)
            if row is not None and place is not None and "auroc" in row.metrics:
                values.setdefault(place, []).append(row.metrics["auroc"])
            for reference in report.references[report.runs.index(run)]:
                paper |= reference.cells
        if values:
            ours = {place: fmean(of) for place, of in values.items()}
            figure = plots.heat_maps(ours, paper, report.tolerance)
            best = max(ours, key=lambda place: ours[place])
            note = f"{len(ours)} cells. Highest AUROC on the test: {ours[best]:.3f} at ratio {best[0]:g}, {best[1]}."
            alt = f"AUROC by mask ratio and depth, {title}"
            found.append(Drawing(title, plots.svg(figure, f"ablation{len(found)}", alt), note))
    return found


def series_of(report: Report) -> dict[str, list[Run]]:
    """Runs that differ at most in their seed and in the one category that each is about, by what they share."""
    groups = alike(report.runs, "seed", *CLASS_KEYS)
    return dict(zip(common_labels(groups, "seed", *CLASS_KEYS), groups, strict=True))


def by_category(report: Report, group: Sequence[Run], metric: str) -> tuple[dict[str, Spread], dict[str, float]]:
    """A metric of each category, with the standard deviation over seeds or else its interval; and the paper's."""
    values: dict[str, list[tuple[Row, float]]] = {}
    published: dict[str, float] = {}
    for run in group:
        tables = [one for one in report.references[report.runs.index(run)] if not one.cells]  # a cell is no category
        for row in run.rows:
            if row.level == "category" and metric in row.metrics:
                values.setdefault(row.category, []).append((row, row.metrics[metric]))
                for value in (table.value(run, row, metric) for table in tables):
                    if value is not None:
                        published.setdefault(row.category, value)
    spreads = {}
    for category, found in values.items():
        mean = fmean(value for _, value in found)
        if len(found) > 1:
            deviation = stdev(value for _, value in found)
            spreads[category] = Spread(mean, deviation, deviation)
        else:
            low, high = found[0][0].intervals.get(metric, (mean, mean))
            spreads[category] = Spread(mean, max(mean - low, 0.0), max(high - mean, 0.0))
    return spreads, published


def categories(report: Report) -> list[Drawing]:
    """Bars of AUROC by category."""
    panel, published = {}, dict[str, float]()
    everything = series_of(report)
    for name, group in list(everything.items())[:SERIES]:
        panel[name], of = by_category(report, group, "auroc")
        published |= of
    names = list(dict.fromkeys(category for series in panel.values() for category in series))
    if sum(map(len, panel.values())) < 2:
        return []
    figure = plots.bars(names, {"AUROC": panel}, {"AUROC": published})
    note = "Error bars: 95 % bootstrap interval, or the standard deviation where there are several seeds."
    svg = plots.svg(figure, "categories", "Bars of AUROC by category")
    return [Drawing("AUROC by category", svg, note + left_out(everything))]


def left_out(series: Sized) -> str:
    """Of how many series only the first are drawn, where there are more than colours."""
    return f" The first {SERIES} of {len(series)} series are drawn." if len(series) > SERIES else ""


def classes(report: Report) -> list[Drawing]:
    """Bars of precision, recall and F1 by the class that is normal (thesis, fig. 4-5)."""
    found = {
        name: group
        for name, group in series_of(report).items()
        if len({run.settings.get("dataset.normal") for run in group}) > 1
    }
    if not found:
        return []
    panels: dict[str, dict[str, dict[str, Spread]]] = {}
    published: dict[str, dict[str, float]] = {}
    for metric, title in CLASS_METRICS.items():
        for name, group in list(found.items())[:SERIES]:
            spreads, of = by_category(report, group, metric)
            panels.setdefault(title, {})[name] = spreads
            published.setdefault(title, {}).update(of)
    names = sorted({category for panel in panels.values() for series in panel.values() for category in series})
    if not names:
        return []
    svg = plots.svg(plots.bars(names, panels, published, as_bars=True), "classes", "Precision, recall, F1 by class")
    note = "At the threshold of the best F1, chosen with the test labels in hand: an oracle, as in the paper."
    return [Drawing("Precision, recall and F1 by normal class", svg, note + left_out(found))]


def scored(run: Run, title: str, category: str) -> Scored:
    """A category's scores as arrays."""
    label, score, _ = np.array(run.predictions[category]).T
    row = next((row for row in run.rows if row.level == "category" and row.category == category), None)
    auroc = row.metrics.get("auroc") if row else None
    return Scored(title, label.astype(int), score, row.threshold if row else None, auroc)


def score_groups(report: Report) -> Iterator[tuple[str, list[Scored]]]:
    """Cells that share a drawing: the categories of one run, or runs with a category each."""
    single: list[Run] = []
    for run in report.runs:
        if len(run.predictions) > 1:
            yield run.title, [scored(run, category, category) for category in run.predictions]
        elif run.predictions:
            single.append(run)
    known = [category for run in single for category in run.predictions]
    for start in range(0, len(single), CELLS):
        part = single[start : start + CELLS]
        cells = [scored(run, name_of(run, category, known), category) for run in part for category in run.predictions]
        yield part[0].title if len(part) == 1 else f"{part[0].name} to {part[-1].name}", cells


def name_of(run: Run, category: str, known: Sequence[str]) -> str:
    """What tells a run of one category from others, whose categories are `known`."""
    if known.count(category) == 1:
        return category
    return f"{category} ({run.name})" if len(set(known)) > 1 else run.name


def scores(report: Report, most: int) -> tuple[list[tuple[Drawing, Drawing | None]], int]:
    """Histograms and ROC curves of up to `most` groups; -> them, and how many groups were left out."""
    groups = list(score_groups(report))
    found = []
    for i, (title, cells) in enumerate(groups[:most]):
        histogram = plots.svg(plots.histograms(cells), f"scores{i}", f"Histograms of scores, {title}")
        curves = plots.roc_curves(cells)
        drawn = Drawing(title, plots.svg(curves, f"roc{i}", f"ROC curves, {title}")) if curves else None
        found.append((Drawing(title, histogram), drawn))
    return found, len(groups) - len(found)
