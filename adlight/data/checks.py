"""What is wrong with a data set: every image and mask is read, on all cores."""

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from rich.progress import track
from rich.table import Table

from adlight.data.frames import Frame, describe_shapes
from adlight.data.images import IMAGE_SUFFIXES, UnreadableImage, list_folders, list_images, to_channels
from adlight.data.mvtec import MVTecAD
from adlight.data.source import Source
from adlight.types import Record, UserError


class ImageCheck(NamedTuple):
    """What reading one record's files showed."""

    size: tuple[int, int] = (0, 0)  # width and height
    kind: str = ""  # such as `900x900 RGB`; empty where the image is unreadable
    digest: bytes = b""  # of its pixels, the same for every format that keeps them
    problem: str | None = None


Checked = dict[str, list[tuple[Record, ImageCheck]]]  # by split


def check_source(source: Source, frame: Frame) -> tuple[list[str | Table], list[str]]:
    """Read a whole data set. -> what was found, to be printed, and what is wrong with it.

    Args:
        source: the data set.
        frame: into which its images would be brought; others of its shorter side may be advised.
    """
    problems: list[str] = []
    checked: Checked = {}
    for split, list_records in (("train", source.train), ("test", source.test)):
        try:
            checked[split] = check_records(source, list_records(), split)
        except UserError as error:
            problems.append(str(error))
            checked[split] = []
    records = [record for part in checked.values() for record, _ in part]
    problems += [check.problem for part in checked.values() for _, check in part if check.problem]
    problems += find_duplicates(checked) + find_unmasked([record for record, _ in checked["test"]])
    problems += find_orphan_masks(source) if isinstance(source, MVTecAD) else []
    found: list[str | Table] = [source.protocol]
    if records:
        sizes = [check.size for _, check in checked["train"] if check.kind]
        found += [summarize(checked), describe_shapes(sizes, min(frame.size))]
    return [*found, *list_skipped_files(records)], list(dict.fromkeys(problems))


def check_records(source: Source, records: list[Record], split: str) -> list[tuple[Record, ImageCheck]]:
    """Decode records on all cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without the GIL
        done = pool.map(lambda record: check_image(source, record), records)
        hidden = not sys.stdout.isatty()
        checks = track(done, f"reading {split}", len(records), transient=True, disable=hidden)
        return list(zip(records, checks, strict=True))


def check_image(source: Source, record: Record) -> ImageCheck:
    """Decode an image and its mask."""
    try:
        image = source.read(record)
        digest = hashlib.blake2b(to_channels(image, 3).tobytes(), digest_size=16, key=str(image.size).encode()).digest()
    except UnreadableImage as error:
        return ImageCheck(problem=str(error))
    except Exception as error:  # whatever a decoder raises, the user needs the file's name
        return ImageCheck(problem=f"cannot read image {record.path}: {error}")
    kind, problem = f"{image.size[0]}x{image.size[1]} {image.mode}", None
    try:
        mask = source.read_mask(record, image.size)
        if mask is not None and mask.getbbox() is None:
            problem = f"mask {record.mask} marks nothing, but its image {record.path} is anomalous: draw the defect"
    except UserError as error:
        problem = str(error)
    return ImageCheck(image.size, kind, digest, problem)


def summarize(checked: Checked) -> Table:
    """Make a table of what was found, one row per category and split."""
    table = Table(title="images", title_justify="left")
    for title in ("category", "split", "normal", "anomalous", "with mask", "unreadable", "sizes and modes"):
        table.add_column(
            title, justify="left" if title in ("category", "split", "sizes and modes") else "right", overflow="fold"
        )
    for category in sorted({record.category for part in checked.values() for record, _ in part}):
        for split, part in checked.items():
            rows = [(record, check) for record, check in part if record.category == category]
            kinds = Counter(check.kind for _, check in rows if check.kind).most_common()
            shown = [f"{kind} ({count})" for kind, count in kinds[:3]] + [f"{len(kinds) - 3} more"] * (len(kinds) > 3)
            anomalous = sum(record.label for record, _ in rows)
            masked = sum(record.mask is not None for record, _ in rows)
            counts = [len(rows) - anomalous, anomalous, masked, sum(not check.kind for _, check in rows)]
            table.add_row(category, split, *map(str, counts), ", ".join(shown))
    return table


def list_skipped_files(records: Iterable[Record]) -> list[str]:
    """Name the files beside the images that are not of a format that is read."""
    notes = []
    for folder in sorted({Path(record.path).parent for record in records}):
        names = [path.name for path in folder.glob("*") if path.is_file() and not path.name.startswith(".")]
        others = sorted(name for name in names if Path(name).suffix.lower() not in IMAGE_SUFFIXES)
        if others:
            known = ", ".join(sorted(IMAGE_SUFFIXES))
            notes.append(f"skipped in {folder}: {len(others)} file(s) such as {others[0]} (read are {known})")
    return notes


def find_duplicates(checked: Checked) -> list[str]:
    """Name the test images that are training images, too."""
    trained = {check.digest: record.path for record, check in checked["train"] if check.digest}
    return [
        f"test image {record.path} has the same pixels as training image {trained[check.digest]}: remove one of them"
        for record, check in checked["test"]
        if check.digest in trained
    ]


def find_unmasked(records: list[Record]) -> list[str]:
    """Name the categories of which some anomalous images have a mask and others not."""
    problems = []
    for category in sorted({record.category for record in records}):
        anomalous = [record for record in records if record.category == category and record.label]
        without = [record.path for record in anomalous if record.mask is None]
        if 0 < len(without) < len(anomalous):
            problems.append(
                f"{len(without)} of {len(anomalous)} anomalous images of {category} have no mask, the first: "
                f"{without[0]}: add it, pixel metrics count such an image as free of defects"
            )
    return problems


def find_orphan_masks(source: MVTecAD) -> list[str]:
    """Name the masks whose image is missing."""
    problems = []
    for category in source.found() if source.wanted is None else source.wanted:
        for defect in list_folders(source.root / category / "ground_truth"):
            folder = source.root / category / "test" / defect
            stems = {path.stem for path in list_images(folder)}
            for mask in list_images(source.root / category / "ground_truth" / defect):
                if not {mask.stem, mask.stem.removesuffix("_mask")} & stems:
                    problems.append(f"mask {mask} has no image in {folder}: add it or remove the mask")
    return problems


def check_split(source: Source, fraction: float, seed: int) -> list[str]:
    """Say which category has too few normal images to hold some out for validation."""
    from adlight.data.datamodule import split_normals  # torch takes seconds to import: not for --help

    try:
        split_normals(source.train(), fraction, seed)
    except UserError as error:
        return [str(error)]
    return []
