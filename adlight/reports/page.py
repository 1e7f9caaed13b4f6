"""The report's page: one HTML file with its styles, script and pictures in it, so that it needs no network."""

import base64
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from adlight import __version__, runs
from adlight.reports import figures
from adlight.reports.collect import MISSING, OverSeeds, Row, Run, short_keys, shown
from adlight.reports.summary import TITLES, Report, figure

MEANINGS = {
    "auroc": "area under the ROC curve of the image scores",
    "ap": "average precision of the image scores",
    "f1_max": "the best F1 over all thresholds, chosen with the test labels in hand: an oracle, not a result",
    "f1_calibrated": "F1 at the threshold that held-out normal images gave",
    "fpr_calibrated": "share of normal images called anomalous at that threshold",
    "trivial_f1": "F1 of calling every image anomalous",
    "pixel_auroc": "area under the ROC curve of the pixels",
    "aupro": "area under the per-region-overlap curve up to a false positive rate of 0.3, normalised",
}
WIDEST, MEGABYTES = 1100, 11  # of a picture in pixels; of all of them


class Cell(NamedTuple):
    """One field of a table: what is shown, what it is sorted by, its full value, and its colour's class."""

    text: str
    value: str = ""
    title: str = ""
    kind: str = ""


class Column(NamedTuple):
    """A heading; `numeric` columns are right-aligned and sort by number."""

    text: str
    numeric: bool = False
    title: str = ""


class Line(NamedTuple):
    """A table's row, and the kinds by which the page shows and hides it."""

    cells: list[Cell]
    kinds: str = ""


class Grid(NamedTuple):
    """A table of the page."""

    columns: list[Column]
    lines: list[Line]


class Picture(NamedTuple):
    """A picture as it stands in the page."""

    source: str
    width: int
    height: int
    alt: str


def number(value: float | None, digits: int = 3, text: str | None = None, kind: str = "") -> Cell:
    """A cell that shows a number rounded, and keeps it to the digit."""
    if value is None:
        return Cell("")
    return Cell(f"{value:.{digits}f}" if text is None else text, repr(value), repr(value), kind)


def metric(row: Row | None, name: str) -> Cell:
    """A metric with its interval."""
    if row is None or name not in row.metrics:
        return Cell("")
    cell = number(row.metrics[name], text=figure(row, name))
    low_high = row.intervals.get(name)
    return cell._replace(title=f"{cell.title} (95 % interval {low_high[0]:.4f} to {low_high[1]:.4f})") if low_high else cell


def verdict(difference: float, tolerance: float) -> str:
    """Whether a difference from the paper is `near`, `above` or `below`."""
    return "near" if abs(difference) <= tolerance else "above" if difference > 0 else "below"


def results(report: Report) -> Grid:
    """The result table: a row a run and category, or a run's state."""
    titles, compared = report.titles(), report.compared()
    models, sets = ({getattr(run, name) for run in report.runs} for name in ("model", "dataset"))
    columns = [Column("run")]
    columns += [Column("model")] * (len(models) > 1) + [Column("data set")] * (len(sets) > 1)
    columns += [Column("differs in", title="settings that differ among the runs of a model on a data set")]
    columns += [Column("category"), Column("images", True, "normal + anomalous test images")]
    columns += [Column(title, True, MEANINGS[name]) for name, title in titles.items()]
    for name in compared:
        columns += [Column(f"paper's {TITLES[name]}", True), Column("ours - paper", True, "coloured by the tolerance")]
    columns += [Column("epochs", True), Column("seconds", True, "of training")]
    lines = []
    for i, run in enumerate(report.runs):
        head = [Cell(run.name, title=str(run.path))]
        head += [Cell(run.model)] * (len(models) > 1) + [Cell(run.dataset)] * (len(sets) > 1) + [Cell(run.label)]
        for row in run.rows() or [None]:
            category = Cell(row.category) if row else Cell(run.state, title=run.reason, kind="state")
            line = [*head, category, images(row), *(metric(row, name) for name in titles)]
            for name in compared:
                line += against_paper(report, i, row, name)
            line += [plain(run.about.get(name)) for name in ("epochs", "seconds")]
            lines.append(Line(line, kinds(row, run)))
    return Grid(columns, lines)


def kinds(row: Row | None, run: Run) -> str:
    """What a row is: the one that stands for its run, a category's, the pooled images'."""
    if row is None:
        return "run category"
    return " ".join(dict.fromkeys(["run"] * (row == run.headline()) + [row.level]))


def images(row: Row | None) -> Cell:
    """How many images a row is about."""
    if row is None or "normal" not in row.metrics:
        return Cell("")
    normal, anomalous = int(row.metrics["normal"]), int(row.metrics["anomalous"])
    return Cell(f"{normal} + {anomalous}", str(normal + anomalous))


def plain(value: Any) -> Cell:
    """A number of a run as it is."""
    return Cell(f"{value:g}" if abs(value) < 1e6 else str(value), repr(value)) if isinstance(value, int | float) else Cell("")


def against_paper(report: Report, i: int, row: Row | None, name: str) -> list[Cell]:
    """The published number, and how far ours is from it."""
    published = report.reference(i, row, name) if row else None
    if row is None or published is None or name not in row.metrics:
        return [number(published), Cell("")]
    difference = row.metrics[name] - published
    return [number(published), number(difference, text=f"{difference:+.3f}", kind=verdict(difference, report.tolerance))]


def seeds(report: Report) -> Grid:
    """Means over seeds."""

    def spread(one: OverSeeds, name: str) -> Cell:
        mean, deviation = one.metrics.get(name, (None, 0.0))
        return Cell("") if mean is None else number(mean, text=f"{mean:.3f} ± {deviation:.3f}")

    titles = {name: title for name, title in report.titles().items() if any(name in one.metrics for one in report.seeds)}
    columns = [Column("runs"), Column("seeds"), Column("category")]
    columns += [Column(title, True, MEANINGS[name]) for name, title in titles.items()]
    lines = [
        Line([Cell(one.label), Cell(", ".join(one.seeds)), Cell(one.category), *(spread(one, name) for name in titles)])
        for one in report.seeds
    ]
    return Grid(columns, lines)


def settings(report: Report) -> Grid:
    """The settings that differ, the longer side downwards."""
    names = short_keys(list(report.differing))
    cells = {key: [Cell(shown(v), kind="unset" * (v == MISSING)) for v in row] for key, row in report.differing.items()}
    if len(report.runs) >= len(cells):
        columns = [Column("run"), *(Column(names[key], title=key) for key in cells)]
        lines = [Line([Cell(run.name), *(row[i] for row in cells.values())]) for i, run in enumerate(report.runs)]
    else:
        columns = [Column("setting"), *(Column(run.name) for run in report.runs)]
        lines = [Line([Cell(key), *row]) for key, row in cells.items()]
    return Grid(columns, lines)


def origins(report: Report) -> Grid:
    """Where each run comes from, and how it ended."""
    columns = [Column(name) for name in ("run", "state", "reason", "commit", "machine", "started", "command", "data")]
    keys = ("commit", "machine", "started", "command", "protocol")
    lines = [
        Line(
            [Cell(run.name, title=str(run.path)), Cell(run.state, kind="state" * (run.state != "finished"))]
            + [Cell(run.reason), *(Cell(str(run.about.get(key) or "")) for key in keys)]
        )
        for run in report.runs
    ]
    return Grid(columns, lines)


def pictures(found: Sequence[Run], detailed: int, each: int) -> tuple[list[tuple[str, list[Picture]]], int]:
    """Panels of up to `detailed` runs, `each` of them; -> them by run, and how many had no place."""
    shown_of, left, room = [], 0, MEGABYTES * 1_000_000
    for run in [run for run in found if runs.pictures(run.path)][:detailed]:
        mine = []
        paths = runs.pictures(run.path)
        for path in paths[:each]:
            picture = embedded(path, f"{run.name}: {path.stem}") if room > 0 else None
            if picture is not None:
                mine.append(picture)
                room -= len(picture.source)
        left += len(paths) - len(mine)
        if mine:
            shown_of.append((run.title, mine))
    left += sum(len(runs.pictures(run.path)) for run in [run for run in found if runs.pictures(run.path)][detailed:])
    return shown_of, left


def embedded(path: Path, alt: str) -> Picture | None:
    """A picture as a data URI, no wider than the page; None if it cannot be read."""
    try:
        with Image.open(path) as image:
            image.load()
            image = image.convert("RGB")
    except (OSError, ValueError):
        return None
    image.thumbnail((WIDEST, 10 * WIDEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(source, *image.size, alt)


def render(report: Report, title: str, detailed: int, each: int) -> str:
    """The page's HTML.

    Args:
        report: what is in it.
        title: its heading.
        detailed: how many runs get histograms, curves and pictures of their own.
        each: how many pictures each of them shows.
    """
    loader = PackageLoader("adlight.reports", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    scores, scores_left = figures.scores(report, detailed)
    shown_of, pictures_left = pictures(report.runs, detailed, each)
    used = {reference.path: reference.column for of in report.references.values() for reference in of}
    return environment.get_template("page.html.j2").render(
        title=title,
        states=report.states(),
        made=f"adlight {__version__}, {time.strftime('%Y-%m-%d %H:%M')}",
        broken=[run for run in report.runs if run.reason],
        results=results(report),
        references=[f"{path}{f' ({column})' if column else ''}" for path, column in used.items()],
        compared=[TITLES[name] for name in report.compared()],
        tolerance=report.tolerance,
        seeds=seeds(report) if report.seeds else None,
        ablations=figures.ablations(report),
        categories=figures.categories(report),
        classes=figures.classes(report),
        scores=scores,
        scores_left=scores_left,
        pictures=shown_of,
        pictures_left=pictures_left,
        settings=settings(report) if report.differing else None,
        origins=origins(report),
    )
