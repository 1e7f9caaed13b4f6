"""The page's tables: headings, and cells that know what they are sorted by."""

from typing import Any, NamedTuple

from adlight.reports.collect import Row, Run, is_number
from adlight.reports.groups import MISSING, short_keys, shown
from adlight.reports.summary import Report, differing, figure, spread

MEANINGS = {
    "auroc": "area under the ROC curve of the image scores",
    "ap": "average precision of the image scores",
    "f1_max": "the best F1 over all thresholds, chosen with the test labels in hand: an oracle, not a result",
    "f1_calibrated": "F1 at the threshold that held-out normal images gave",
    "fpr_calibrated": "share of normal images called anomalous at that threshold",
    "trivial_f1": "F1 of calling every image anomalous",
    "pixel_auroc": "area under the ROC curve of the pixels",
    "aupro": "area under the per-region-overlap curve up to a false positive rate of 0.3, normalised",
    "recall_calibrated": "share of the defect's images called anomalous at that threshold",
}
DEFECTS = {"auroc": "AUROC", "ap": "AP", "recall_calibrated": "recall at threshold"}


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
    return (
        cell._replace(title=f"{cell.title} (95 % interval {low_high[0]:.4f} to {low_high[1]:.4f})")
        if low_high
        else cell
    )


def verdict(difference: float, tolerance: float) -> str:
    """Whether a difference from the paper is `near`, `above` or `below`."""
    return "near" if abs(difference) <= tolerance else "above" if difference > 0 else "below"


def results(report: Report) -> Grid:
    """The result table: a row a run and category, or a run's state."""
    titles, compared = report.titles(), report.compared()
    models, sets = ({getattr(run, name) for run in report.runs} for name in ("model", "dataset"))
    columns = [Column("run")]
    columns += [Column("model")] * (len(models) > 1) + [Column("data set")] * (len(sets) > 1)
    columns += [
        Column(name, all(is_number(run.varying.get(key, 0)) for run in report.runs), key)
        for key, name in report.varying.items()
    ] or [Column("differs in", title="settings that differ among the runs of a model on a data set")]
    columns += [Column("category"), Column("images", True, "normal + anomalous test images")]
    columns += metric_columns(titles, compared)
    columns += [Column("epochs", True), Column("seconds", True, "of training")]
    lines = []
    for i, run in enumerate(report.runs):
        head = [Cell(run.name, title=str(run.path))]
        head += [Cell(run.model)] * (len(models) > 1) + [Cell(run.dataset)] * (len(sets) > 1)
        head += [Cell(text, kind="" if report.varying else "long") for text in differing(report, run)]
        rows: list[Row | None] = [*run.rows]
        for row in rows or [None]:
            category = Cell(row.category) if row else Cell(run.state, title=run.reason, kind="state")
            line = [*head, category, images(row)]
            for name in titles:
                line.append(metric(row, name))
                if name in compared:
                    published = report.reference(i, row, name) if row else None
                    line += against(row.metrics.get(name) if row else None, published, report.tolerance)
            line += [plain(run.about.get(name)) for name in ("epochs", "seconds")]
            lines.append(Line(line, kinds(row, run)))
    return Grid(columns, lines)


def metric_columns(titles: dict[str, str], compared: list[str]) -> list[Column]:
    """A column a metric; beside one that was published, the paper's number and the difference."""
    columns = []
    for name, title in titles.items():
        columns.append(Column(title, True, MEANINGS[name]))
        if name in compared:
            columns += [Column("paper", True, f"published: {title}"), Column("ours - paper", True, title)]
    return columns


def kinds(row: Row | None, run: Run) -> str:
    """What a row is: the one that stands for its run, a category's, the pooled images'."""
    if row is None:
        return "run category"
    return " ".join(dict.fromkeys(["run"] * (row == run.headline) + [row.level]))


def images(row: Row | None) -> Cell:
    """How many images a row is about."""
    if row is None or "normal" not in row.metrics:
        return Cell("")
    normal, anomalous = int(row.metrics["normal"]), int(row.metrics["anomalous"])
    return Cell(f"{normal} + {anomalous}", str(normal + anomalous))


def plain(value: Any) -> Cell:
    """A number of a run as it is."""
    return (
        Cell(f"{value:g}" if abs(value) < 1e6 else str(value), repr(value))
        if isinstance(value, int | float)
        else Cell("")
    )


def against(ours: float | None, published: float | None, tolerance: float) -> list[Cell]:
    """The published number, and how far ours is from it."""
    if ours is None or published is None:
        return [number(published), Cell("")]
    difference = ours - published
    return [number(published), number(difference, text=f"{difference:+.3f}", kind=verdict(difference, tolerance))]


def means(report: Report) -> Grid:
    """Means over seeds and over runs of a category each, the published numbers beside them."""
    titles = {
        name: title for name, title in report.titles().items() if any(name in one.metrics for one in report.means)
    }
    compared = [name for name in report.compared() if name in titles]
    columns = [Column("runs"), Column("seeds"), Column("category")]
    columns += metric_columns(titles, compared)
    lines = []
    for one in report.means:
        line = [Cell(one.label), Cell(", ".join(one.seeds)), Cell(one.category)]
        for name in titles:
            mean, _ = one.metrics.get(name, (None, None))
            line.append(number(mean, text=spread(one, name)))
            if name in compared:
                line += against(mean, report.mean_reference(one, name), report.tolerance)
        lines.append(Line(line, "mean" if len(one.of) > 1 else ""))
    return Grid(columns, lines)


def defects(report: Report) -> Grid:
    """The runs' defect types, each against all normal images of its category."""
    columns = [Column("run"), Column("category"), Column("defect")]
    columns += [Column("images", True, "normal + anomalous test images")]
    columns += [Column(title, True, MEANINGS[name]) for name, title in DEFECTS.items()]
    lines = []
    for run in report.runs:
        for category, defect, found in run.defects:
            head = [Cell(run.name, title=run.label), Cell(category), Cell(defect)]
            counts = images(Row("defect", category, found, {}, None))
            lines.append(Line([*head, counts, *(number(found.get(name)) for name in DEFECTS)]))
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
    lines = []
    for run in report.runs:
        state = Cell(run.state, kind="" if run.state == "finished" else "state")
        line = [Cell(run.name, title=str(run.path)), state, Cell(run.reason)]
        lines.append(Line(line + [Cell(str(run.about.get(key) or "")) for key in keys]))
    return Grid(columns, lines)
