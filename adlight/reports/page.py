"""The report's page: one HTML file with its styles, scripts and drawings in it, so that it needs no network.

Pictures of test images stay in the runs' folders; the page links them.
"""

import json
import time
from pathlib import Path
from typing import Any

import itables.options
import pandas as pd
from itables import JavascriptCode, to_html_datatable
from itables.javascript import generate_init_offline_itables_html
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from adlight import __version__
from adlight.reports import curves, sections, tables
from adlight.reports.collect import Runs
from adlight.reports.grouping import group_scores, run_titles
from adlight.reports.monitoring import Monitoring
from adlight.reports.rows import OBJECTIVE
from adlight.reports.terminal import DIFFERENCE, HIGH, LOW, PAPER, TEXT, VALUE
from adlight.reports.viewer import viewer_data
from adlight.runs.find import natural_key
from adlight.runs.folder import RunFolder

OPEN, PAGED = 40, 200  # rows of a table that is shown without being asked for; of one page of a table
LONG = 50  # letters in a line of a column
MEANINGS = {
    "AUROC": "area under the ROC curve of the image scores",
    "AP": "average precision of the image scores",
    "best F1 (oracle)": "the best F1 over all thresholds, chosen with the test labels in hand: not a result",
    "F1 at threshold": "F1 at the threshold calibrated on held-out normal images: what a user gets",
    "FPR at threshold": "share of normal images called anomalous at that threshold",
    "recall at threshold": "share of the defect's images called anomalous at that threshold",
    "F1 of all-anomalous": "F1 of calling every image anomalous",
    "pixel AUROC": "area under the ROC curve of the pixels",
    "AUPRO": "area under the per-region-overlap curve up to a false positive rate of 0.3, normalized",
    "val/auroc": "AUROC of held-out normal images against copies with synthetic anomalies: what may choose a model",
}
LOOK: dict[str, Any] = {
    **{"connected": False, "display_logo_when_loading": False, "classes": "display compact", "showIndex": False},
    **{"format_floats_in_python": False, "text_in_header_can_be_selected": False, "style": "width:auto;margin:0"},
    **{"maxBytes": 0, "maxColumns": 0},  # nothing is left out
}


def render(
    found: Runs,
    means: pd.DataFrame,
    title: str,
    tolerance: float,
    detailed: int,
    pictures: int,
    folder: Path = Path(),
    monitoring: Monitoring | None = None,
) -> str:
    """Write the HTML of a page that is to lie in `folder`.

    Differences of up to `tolerance` from published numbers count as equal; `detailed` runs get histograms, curves, a
    place in the viewer and up to `pictures` pictures of their own. `monitoring`: what became of runs and searches.
    """
    monitoring = Monitoring() if monitoring is None else monitoring
    of_tables = _tables(found, means, monitoring)
    titles, chosen = run_titles(found.headlines), _chosen(found)
    panels, panels_left = sections.link_panels(found, detailed, pictures, folder)
    scores = [(titles.get(name, name), cells) for name, cells in group_scores(found)]
    viewer = viewer_data(found, folder, detailed, chosen)
    drawn: dict[str, Any] = {
        "ablation": sections.draw_ablations(found, tolerance),
        "bars": sections.draw_bars(found),
        "learning": sections.draw_learning(found, detailed),
        "scores": [(name, sections.draw_scores(name, cells)) for name, cells in scores[:detailed]],
        "pictures": [(titles[name], mine) for name, mine in panels],
        "viewer": _to_json(viewer) if viewer else None,
        "searches": monitoring.histories,
    }
    environment = Environment(
        loader=PackageLoader("adlight.reports", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        title=title,
        states=found.states,
        made=f"adlight {__version__}, {time.strftime('%Y-%m-%d %H:%M')}",
        bundle=Markup(generate_init_offline_itables_html(itables.options.dt_bundle).partition("<div")[0]),
        links=_to_json(_links(found, folder)),
        problems=found.problems,
        tables={name: to_html(table, name, tolerance) for name, table in of_tables.items() if len(table)},
        rows={name: len(table) for name, table in of_tables.items()},
        meanings={name: text for name, text in MEANINGS.items() if any(name in of for of in of_tables.values())},
        references=sorted(found.published["source"].unique()) if len(found.published) else [],
        tolerance=tolerance,
        chosen=chosen,
        drawn=[name for name, what in drawn.items() if what],
        viewer_left=viewer["left"] if viewer else [],
        scores_left=len(scores[detailed:]),
        bins=curves.BINS,
        panels_left=panels_left,
        open_rows=OPEN,
        monitoring=monitoring,
        **drawn,
    )


def _tables(found: Runs, means: pd.DataFrame, monitoring: Monitoring) -> dict[str, pd.DataFrame]:
    return {
        "results": tables.by_run(found),
        "decisions": tables.by_decision(found),
        "categories": tables.by_category(found),
        "means": tables.by_mean(means),
        "defects": tables.by_defect(found.defects),
        "settings": tables.by_setting(found),
        "origins": tables.by_origin(found),
        "drift": monitoring.drift,
        "groups": monitoring.groups,
        "searches": monitoring.importances,
    }


def _to_json(content: Any) -> Markup:
    """Write JSON that ends no script and begins no comment, whatever words are in it."""
    return Markup(json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def _links(found: Runs, folder: Path) -> dict[str, dict[str, str]]:
    """Give the places of each run's folder, panels and log, by the run's name."""
    links = {}
    for name, path in found.headlines[["name", "folder"]].to_numpy():
        run = RunFolder(path)
        places = {"run": run.path, "panels": run.panels, "log": run.log}
        links[name] = {part: sections.link(place, folder) for part, place in places.items() if place.exists()}
    return links


def _chosen(found: Runs) -> str:
    """Name the finished run with the highest `val/auroc`, if there are several of the same images."""
    runs = found.headlines[found.headlines["status"] == "finished"]
    runs = runs.dropna(subset=OBJECTIVE) if OBJECTIVE in runs else runs[:0]
    if len(runs) < 2 or runs["dataset"].nunique() > 1 or runs["categories"].nunique() > 1:  # other images
        return ""
    return str(runs.loc[runs[OBJECTIVE].idxmax(), "name"])


def to_html(table: pd.DataFrame, name: str, tolerance: float) -> Markup:
    """Write a table that sorts and filters in the browser; numbers by the functions of the page's script."""
    definitions, columns, headings = list[dict[str, Any]](), [], []
    for i, ((title, kind), column) in enumerate(table.items()):
        headings.append(kind if kind in (PAPER, DIFFERENCE) else title)
        columns.append(_ranked(column) if kind == TEXT and title != "status" else column)
        if kind in (LOW, HIGH):
            definitions.append({"targets": i, "visible": False, "searchable": False})
        elif kind != TEXT:
            has_interval = str(kind == VALUE and (title, LOW) in table).lower()
            limit = tolerance if kind == DIFFERENCE else "null"
            functions = {"type": "numbersLast()", "render": f"shown('{kind}', {has_interval})"}
            functions["createdCell"] = f"explained({has_interval}, {limit})"
            definitions.append({key: JavascriptCode(code) for key, code in functions.items()})
            definitions[-1] |= {"targets": i, "orderSequence": ["desc", "asc", ""], "className": "number"}
        elif title == "name":
            definitions.append({"targets": i, "createdCell": JavascriptCode("linked")})
        elif title == "status":
            definitions.append({"targets": i, "createdCell": JavascriptCode("marked")})
        elif column.astype(str).str.len().max() > LONG:
            definitions.append({"targets": i, "className": "long"})
    is_long = len(table) > PAGED
    layout = {"topStart": "search", "topEnd": "info", "bottomStart": None, "bottomEnd": "paging" if is_long else None}
    options: dict[str, Any] = {"columnDefs": definitions, "layout": layout, "paging": is_long, "pageLength": PAGED}
    return Markup(
        to_html_datatable(pd.concat(columns, axis=1).set_axis(headings, axis=1), table_id=name, **LOOK, **options)
    )


def _ranked(column: pd.Series) -> pd.Series:
    """Make a column of words sort by the numbers in them: 0.75 before 0.8, 9 before 10."""
    words = list(column.dropna().unique())
    return column.astype(pd.CategoricalDtype(sorted(words, key=lambda word: natural_key(Path(word))), ordered=True))
