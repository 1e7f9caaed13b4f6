"""Labels from an inspector: a CSV, a table of predictions with a column `corrected`, or folders."""

import csv
from pathlib import Path

from adlight.data.listing import describe_folder, list_images, match_masks, means_normal
from adlight.types import Record, UserError

WORDS = {"normal": 0, "0": 0, "anomalous": 1, "1": 1}
GOOD, BAD, MASKS = "good", "bad", "masks"  # folders


def read_labels(place: str | Path) -> list[Record]:
    """Read labelled images, in order; the category is empty where none is given.

    Args:
        place: a CSV with the columns `path`, `label` (or `corrected`, which may have empty cells) and, optionally,
            `mask` and `category`; paths are relative to the working directory or to the CSV. Or a folder with good/,
            bad/ or both and, optionally, masks/ with masks named after the images in bad/.

    Raises:
        UserError: there are no labels, a label is unknown, a file is missing, or an image has two different labels.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        found = _read_folders(path)
    elif path.is_file():
        found = _read_csv(path)
    else:
        raise UserError(f"labels={place}: there is no such file or folder")
    known = dict[Path, Record]()
    for record in found:
        other = known.setdefault(Path(record.path).resolve(), record)
        if other.label != record.label:
            raise UserError(f"labels={place}: {record.path} is labelled normal and anomalous: remove one of the two")
    return list(known.values())


def _read_folders(folder: Path) -> list[Record]:
    defects = list_images(folder / BAD)
    masks = match_masks(defects, folder / BAD, list_images(folder / MASKS), folder / MASKS)
    found = [Record(str(path), "") for path in list_images(folder / GOOD)]
    found += [Record(str(path), "", "defect", 1, masks.get(path)) for path in defects]
    if not found:
        there = describe_folder(folder)
        raise UserError(f"labels={folder}: no images in {GOOD}/ or {BAD}/ there (it holds {there})")
    return found


def _read_csv(path: Path) -> list[Record]:
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            header = file.readline()
            file.seek(0)
            semicolons = header.count(";") > header.count(",")  # from spreadsheets with decimal commas
            rows = list(csv.DictReader(file, delimiter=";" if semicolons else ","))
    except csv.Error as error:
        raise UserError(f"labels={path} cannot be read as CSV: {error}") from error
    columns = list(rows[0]) if rows else []
    column = "corrected" if "corrected" in columns else "label"
    if not {"path", column} <= set(columns):
        there = ", ".join(map(str, columns)) or "none"
        raise UserError(f"labels={path} needs the columns path and label (or corrected), and has: {there}")
    numbered = [(number, row) for number, row in enumerate(rows, 2) if (row[column] or "").strip() or column == "label"]
    if not numbered:
        raise UserError(f"labels={path} holds no label: write normal or anomalous into its column {column}")
    return [_read_row(path, number, row, column) for number, row in numbered]


def _read_row(table: Path, number: int, row: dict[str, str | None], column: str) -> Record:
    where, word = f"labels={table}, line {number}", (row[column] or "").strip().lower()
    label = WORDS.get(word, 0 if word and means_normal(word) else None)
    if label is None:
        raise UserError(f"{where}: {column} is {row[column]!r}: write normal or anomalous (0 or 1)")
    mask = _find_file(table, where, row["mask"]) if row.get("mask") else None
    if mask is not None and not label:
        raise UserError(f"{where}: a normal image has no mask: remove it, or write anomalous")
    image = _find_file(table, where, row["path"] or "")
    return Record(image, (row.get("category") or "").strip(), "defect" if label else "good", label, mask)


def _find_file(table: Path, where: str, name: str | None) -> str:
    for path in (Path(name or "").expanduser(), table.parent / (name or "")):
        if path.is_file():
            return str(path)
    raise UserError(f"{where}: there is no file {name!r}, neither here nor beside the table")
