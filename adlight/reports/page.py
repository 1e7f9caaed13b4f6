"""The report's page: a single HTML file with its styles, scripts and figures, which needs no network.

Pictures of test images stay in the runs' folders, to which the page links.
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
from adlight.reports.grouping import group_scores, make_titles
from adlight.reports.monitoring import Monitoring
from adlight.reports.terminal import DIFFERENCE, HIGH, LOW, PAPER, TEXT, VALUE
from adlight.reports.viewer import viewer_data
from adlight.runs.find import natural_key
from adlight.runs.folder import RunFolder
from adlight.runs.tables import OBJECTIVE

OPEN, PAGED = 40, 200  # largest number of rows of a table that is expanded at first, and of a table's page
LONG = 50  # largest number of characters in a column without line breaks
MEANINGS = {
    "AUROC": "area under the ROC curve of the image scores",
    "AP": "average precision of the image scores",
    "best F1 (oracle)": "best F1 over all thresholds, chosen with the test labels: not a result",
    "F1 at threshold": "F1 at the threshold calibrated on held-out normal images: what a user gets",
    "FPR at threshold": "fraction of normal images called anomalous at that threshold",
    "recall at threshold": "fraction of the defect's images called anomalous at that threshold",
    "F1 of all-anomalous": "F1 of calling every image anomalous",
    "pixel AUROC": "area under the ROC curve of the pixel scores",
    "AUPRO": "area under the per-region-overlap curve up to a false positive rate of 0.3, normalized",
    "val/auroc": "AUROC of held-out normal images against copies with synthetic anomalies: choose models by it",
}
TABLE_OPTIONS: dict[str, Any] = {
    "connected": False,
    "display_logo_when_loading": False,
    "classes": "display compact",
    "showIndex": False,
    "format_floats_in_python": False,
    "text_in_header_can_be_selected": False,
    "style": "width:auto;margin:0",
    "maxBytes": 0,  # no limit
    "maxColumns": 0,
}
_ENVIRONMENT = Environment(
    loader=PackageLoader("adlight.reports", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)


def render(
    runs: Runs,
    means: pd.DataFrame,
    title: str,
    tolerance: float,
    detailed: int,
    pictures: int,
    folder: Path,
    monitoring: Monitoring,
) -> str:
    """Render the page as HTML, with links relative to its `folder`.

    `means` come from `grouping.average_runs`. Differences from published numbers up to `tolerance` count as none. Up to
    `detailed` runs have histograms, curves, a place in the viewer, and at most `pictures` pictures each.
    """
    shown = {name: table for name, table in _make_tables(runs, means, monitoring).items() if len(table)}
    chosen = _choose_run(runs)
    return _ENVIRONMENT.get_template("page.html.j2").render(
        title=title,
        states=runs.states,
        made=f"adlight {__version__}, {time.strftime('%Y-%m-%d %H:%M')}",
        bundle=Markup(generate_init_offline_itables_html(itables.options.dt_bundle).partition("<div")[0]),
        links=_to_json(_link_runs(runs, folder)),
        problems=runs.problems,
        tables={name: to_html(table, name, tolerance) for name, table in shown.items()},
        rows={name: len(table) for name, table in shown.items()},
        meanings={name: text for name, text in MEANINGS.items() if any(name in table for table in shown.values())},
        references=sorted(runs.published["source"].unique()) if len(runs.published) else [],
        tolerance=tolerance,
        chosen=chosen,
        **_draw_figures(runs, monitoring, tolerance, detailed, pictures, folder, chosen),
        bins=curves.BINS,
        open_rows=OPEN,
        monitoring=monitoring,
    )


def _draw_figures(
    runs: Runs, monitoring: Monitoring, tolerance: float, detailed: int, pictures: int, folder: Path, chosen: str
) -> dict[str, dict[str, Any]]:
    """Draw the page's figures, which the template gets as `figures`; `left` says what is not shown."""
    titles, viewer = make_titles(runs.headlines), viewer_data(runs, folder, detailed, chosen)
    scores = [(titles.get(name, name), cells) for name, cells in group_scores(runs)]
    panels, panels_left = sections.link_panels(runs, detailed, pictures, folder)
    figures = {
        "viewer": _to_json(viewer) if viewer else None,
        "learning": sections.draw_learning(runs, detailed),
        "ablation": sections.draw_ablations(runs, tolerance),
        "bars": sections.draw_bars(runs),
        "scores": [(name, sections.draw_scores(name, cells)) for name, cells in scores[:detailed]],
        "pictures": [(titles[name], linked) for name, linked in panels],
        "searches": monitoring.histories,
    }
    left = {"viewer": viewer["left"] if viewer else [], "scores": len(scores[detailed:]), "pictures": panels_left}
    return {"figures": figures, "left": left}


def _make_tables(runs: Runs, means: pd.DataFrame, monitoring: Monitoring) -> dict[str, pd.DataFrame]:
    return {
        "results": tables.by_run(runs),
        "decisions": tables.by_decision(runs),
        "categories": tables.by_category(runs),
        "means": tables.by_mean(means),
        "defects": tables.by_defect(runs.defects),
        "settings": tables.by_setting(runs),
        "origins": tables.by_origin(runs),
        "drift": monitoring.drift,
        "groups": monitoring.groups,
        "searches": monitoring.importances,
    }


def _to_json(content: Any) -> Markup:
    """Format JSON for a script element, whatever text it contains."""
    return Markup(json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def _link_runs(runs: Runs, folder: Path) -> dict[str, dict[str, str]]:
    """Link each run's folder, panels and log, by the run's name."""
    links = {}
    for name, path in runs.headlines[["name", "folder"]].to_numpy():
        run = RunFolder(path)
        places = {"run": run.path, "panels": run.panels, "log": run.log}
        links[name] = {part: sections.link(place, folder) for part, place in places.items() if place.exists()}
    return links


def _choose_run(runs: Runs) -> str:
    """Choose the finished run with the highest `val/auroc`; empty unless there are several runs on the same images."""
    rows = runs.headlines[runs.headlines["status"] == "finished"]
    rows = rows.dropna(subset=OBJECTIVE) if OBJECTIVE in rows else rows[:0]
    if len(rows) < 2 or rows["dataset"].nunique() > 1 or rows["categories"].nunique() > 1:
        return ""
    return str(rows.loc[rows[OBJECTIVE].idxmax(), "name"])


def to_html(table: pd.DataFrame, name: str, tolerance: float) -> Markup:
    """Render a table that sorts and filters in the browser, with the functions of `page.js`."""
    definitions, columns, headings = list[dict[str, Any]](), [], []
    for i, ((title, kind), column) in enumerate(table.items()):
        headings.append(kind if kind in (PAPER, DIFFERENCE) else title)
        columns.append(_sort_naturally(column) if kind == TEXT and title != "status" else column)
        if kind in (LOW, HIGH):
            definitions.append({"targets": i, "visible": False, "searchable": False})
        elif kind != TEXT:
            has_interval = str(kind == VALUE and (title, LOW) in table).lower()
            limit = tolerance if kind == DIFFERENCE else "null"
            functions = {"type": "sortMissingLast()", "render": f"formatNumber('{kind}', {has_interval})"}
            functions["createdCell"] = f"explainNumber({has_interval}, {limit})"
            definitions.append({key: JavascriptCode(code) for key, code in functions.items()})
            definitions[-1] |= {"targets": i, "orderSequence": ["desc", "asc", ""], "className": "number"}
        elif title == "name":
            definitions.append({"targets": i, "createdCell": JavascriptCode("linkRun")})
        elif title == "status":
            definitions.append({"targets": i, "createdCell": JavascriptCode("markStatus")})
        elif column.astype(str).str.len().max() > LONG:
            definitions.append({"targets": i, "className": "long"})
    is_long = len(table) > PAGED
    layout = {"topStart": "search", "topEnd": "info", "bottomStart": None, "bottomEnd": "paging" if is_long else None}
    options: dict[str, Any] = {"columnDefs": definitions, "layout": layout, "paging": is_long, "pageLength": PAGED}
    frame = pd.concat(columns, axis=1).set_axis(headings, axis=1)
    return Markup(to_html_datatable(frame, table_id=name, **TABLE_OPTIONS, **options))


def _sort_naturally(column: pd.Series) -> pd.Series:
    """Make a text column sort by the numbers in it: 0.75 before 0.8, 9 before 10."""
    words = list(column.dropna().unique())
    return column.astype(pd.CategoricalDtype(sorted(words, key=lambda word: natural_key(Path(word))), ordered=True))
