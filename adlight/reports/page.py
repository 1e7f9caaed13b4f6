"""The report's page: one HTML file with its styles, script and pictures in it, so that it needs no network."""

import base64
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from adlight import __version__
from adlight.reports import figures, grids
from adlight.reports.collect import Run
from adlight.reports.summary import TITLES, Report
from adlight.runs.folder import RunFolder

WIDEST, MEGABYTES = 1100, 11  # of a picture in pixels; of all of them
DEFECTS = 1000  # rows of their table


class Picture(NamedTuple):
    """A picture as it stands in the page."""

    source: str
    width: int
    height: int
    alt: str


def pictures(found: Sequence[Run], detailed: int, each: int) -> tuple[list[tuple[str, list[Picture]]], int]:
    """Panels of up to `detailed` runs, `each` of them; -> them by run, and how many had no place."""
    having = [(run, RunFolder(run.path).panel_paths()) for run in found]
    shown_of, room = [], MEGABYTES * 1_000_000
    for run, paths in [(run, paths) for run, paths in having if paths][:detailed]:
        mine = []
        for path in paths[:each]:
            picture = embedded(path, f"{run.name}: {path.stem}") if room > 0 else None
            if picture is not None:
                mine.append(picture)
                room -= len(picture.source)
        if mine:
            shown_of.append((run.title, mine))
    return shown_of, sum(len(paths) for _, paths in having) - sum(len(mine) for _, mine in shown_of)


def embedded(path: Path, alt: str) -> Picture | None:
    """A picture as a data URI, no wider than the page; None if it cannot be read."""
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except (OSError, ValueError):
        return None
    small.thumbnail((WIDEST, 10 * WIDEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(source, *small.size, alt)


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
    defects = grids.defects(report)
    used = {reference.shown: reference.column for of in report.references.values() for reference in of}
    return environment.get_template("page.html.j2").render(
        title=title,
        states=report.states(),
        made=f"adlight {__version__}, {time.strftime('%Y-%m-%d %H:%M')}",
        broken=[run for run in report.runs if run.reason],
        results=grids.results(report),
        references=[f"{path}{f' ({column})' if column else ''}" for path, column in used.items()],
        compared=[TITLES[name] for name in report.compared()],
        tolerance=report.tolerance,
        means=grids.means(report) if report.means else None,
        ablations=figures.ablations(report),
        categories=figures.categories(report),
        classes=figures.classes(report),
        scores=scores,
        scores_left=scores_left,
        defects=defects._replace(lines=defects.lines[:DEFECTS]) if defects.lines else None,
        defects_left=len(defects.lines[DEFECTS:]),
        pictures=shown_of,
        pictures_left=pictures_left,
        settings=grids.settings(report) if report.differing else None,
        origins=grids.origins(report),
    )
