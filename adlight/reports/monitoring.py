"""What became of finished runs: predictions that drift, groups of anomalies; and what searches have found."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from PIL import Image

from adlight.reports import drift
from adlight.reports.collect import DAMAGE, Runs
from adlight.reports.search import read_searches
from adlight.reports.sections import WIDEST, Picture, embed_figure, link
from adlight.reports.terminal import COUNT, TEXT, VALUE
from adlight.runs.groups import GroupFolder
from adlight.runs.history import read_calibration
from adlight.types import UserError

NOTHING = pd.DataFrame()
FIGURES = {"silhouette": "silhouette", "adjusted_rand": "adjusted Rand index", "purity": "purity"}
SHEETS = 8  # pictures of groups of a run


class Monitoring(NamedTuple):
    """Tables and pictures of runs in use."""

    drift: pd.DataFrame = NOTHING  # a row per run, day and category
    drawings: Sequence[Picture] = ()  # one per run
    lines: Sequence[str] = ()  # one per day that has drifted
    groups: pd.DataFrame = NOTHING  # a row per run and group
    sheets: Sequence[tuple[str, list[Picture]]] = ()  # pictures of groups, by run
    histories: Sequence[Picture] = ()  # one per search
    importances: pd.DataFrame = NOTHING  # a row per search and setting
    problems: Sequence[str] = ()  # what could not be read


def monitor_runs(found: Runs, places: Sequence[str], folder: Path) -> Monitoring:
    """Read what runs have predicted, how their anomalies were grouped, and searches, for a page in `folder`.

    Damaged files are reported, and the rest is shown.
    """
    rows, drawings, lines, groups, sheets = [], list[Picture](), list[str](), [], []
    histories, importances, problems = read_searches(places)
    for name, place in found.headlines[["name", "folder"]].to_numpy():
        try:
            if len(history := drift.read_history(Path(place))):
                known = read_calibration(Path(place))
                tested = drift.test_days(history, known)
                rows.append(tested.assign(name=name))
                lines += drift.drift_lines(name, tested)
                note = "" if known else "The scores of its calibration were not kept: nothing is tested."
                drawings.append(embed_figure(drift.draw(history, tested, known), name, note))
            if (newest := GroupFolder.latest(Path(place))) is not None:
                table, pictures = _groups(name, newest, folder)
                groups.append(table)
                sheets.append((name, pictures))
        except UserError as error:
            problems.append(f"{name}: {error}")
        except DAMAGE as error:
            problems.append(f"{name}: its groups are damaged ({type(error).__name__}: {error}): group them again")
    return Monitoring(
        *(_drift_table(rows), drawings, lines, pd.concat(groups) if groups else NOTHING, sheets),
        *(histories, importances, problems),
    )


def _drift_table(parts: list[pd.DataFrame]) -> pd.DataFrame:
    if not parts:
        return NOTHING
    rows = pd.concat(parts, ignore_index=True)
    words = {"name": rows["name"], "day": rows["day"].astype(str), "category": rows["category"]}
    verdict = rows["drifts"].map({True: "drifts", False: "as in calibration"}).where(rows["p"].notna(), "not tested")
    columns = {(title, TEXT): column for title, column in words.items()} | {("images", COUNT): rows["images"]}
    numbers = {"share above": rows["above"], "Kolmogorov-Smirnov": rows["ks"], "corrected p": rows["p"]}
    columns |= {(title, VALUE): column.astype(float) for title, column in numbers.items()}
    return pd.DataFrame(columns | {("scores", TEXT): verdict})


def _groups(name: str, of: GroupFolder, folder: Path) -> tuple[pd.DataFrame, list[Picture]]:
    rows, summary = of.read()
    found, pictures = [], list[Picture]()
    for group, size in sorted(Counter(int(row["group"]) for row in rows).items(), key=lambda pair: (-pair[1], pair[0])):
        most = Counter(row["defect"] for row in rows if int(row["group"]) == group).most_common(3)
        said = ", ".join(f"{defect} {count}" for defect, count in most)
        title = "in no group" if group < 0 else f"group {group}"
        found.append((name, title, float(size), said, most[0][1] / size, *map(summary.get, FIGURES)))
        path = of.sheet(group)
        if path.is_file() and len(pictures) < SHEETS:
            with Image.open(path) as image:
                pictures.append(Picture(link(path, folder), min(image.width, WIDEST), f"{title}: {said}"))
    titles = [("name", TEXT), ("group", TEXT), ("regions", COUNT), ("most frequent types", TEXT), ("share", VALUE)]
    titles += [(title, VALUE) for title in FIGURES.values()]
    table = pd.DataFrame(found, columns=pd.MultiIndex.from_tuples(titles))
    return table.dropna(axis=1, how="all"), pictures
