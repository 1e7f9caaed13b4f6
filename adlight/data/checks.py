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

from adlight.data.images import IMAGE_SUFFIXES, list_folders, list_images, to_channels
from adlight.data.mvtec import MVTecAD
from adlight.data.source import Source
from adlight.types import Record, UserError


class Look(NamedTuple):
    """What one image's files showed."""

    kind: str = ""  # such as `900x900 RGB`
    digest: bytes = b""  # of its pixels, the same for every format that keeps them
    problem: str | None = None


def inspect(source: Source) -> tuple[list[str | Table], list[str]]:
    """Read all of a data set. -> what was found, to be printed, and what is wrong with it."""
    problems: list[str] = []
    records: dict[str, list[Record]] = {}
    for split, listed in (("train", source.train), ("test", source.test)):
        try:
            records[split] = listed()
        except UserError as error:
            problems.append(str(error))
            records[split] = []
    looks = {split: look_at(source, part, split) for split, part in records.items()}
    table = [summary(records, looks)] if any(records.values()) else []
    notes = passed_over(record for part in records.values() for record in part)
    problems += [look.problem for part in looks.values() for look in part if look.problem]
    problems += duplicates(records, looks) + unmasked(records["test"])
    problems += orphans(source) if isinstance(source, MVTecAD) else []
    return [source.protocol, *table, *notes], list(dict.fromkeys(problems))  # both splits miss a missing folder


def look_at(source: Source, records: list[Record], split: str) -> list[Look]:
    """Decode records on all cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without the GIL
        looks = pool.map(lambda record: look(source, record), records)
        return list(track(looks, f"reading {split}", len(records), transient=True, disable=not sys.stdout.isatty()))


def look(source: Source, record: Record) -> Look:
    """Decode an image and its mask."""
    try:
        image = source.read(record)
        digest = hashlib.blake2b(to_channels(image, 3).tobytes(), digest_size=16, key=str(image.size).encode()).digest()
    except Exception as error:  # whatever a decoder throws, the user needs the file's name
        named = record.path in str(error)
        return Look(
            problem=str(error) if named else f"cannot read image {record.path}: {error}; fix or remove the file"
        )
    kind, problem = f"{image.size[0]}x{image.size[1]} {image.mode}", None
    try:
        mask = source.read_mask(record, image.size)
        if mask is not None and mask.getbbox() is None:
            problem = (
                f"mask {record.mask} marks nothing: its image {record.path} is labelled anomalous; draw the defect"
            )
    except UserError as error:
        problem = str(error)
    return Look(kind, digest, problem)


def summary(records: dict[str, list[Record]], looks: dict[str, list[Look]]) -> Table:
    """Rows of what was found, a category and split each."""
    table = Table(title="images", title_justify="left")
    for title in ("category", "split", "normal", "anomalous", "with mask", "unreadable", "sizes and modes"):
        table.add_column(title, justify="left" if title in ("category", "split", "sizes and modes") else "right")
    for category in sorted({record.category for part in records.values() for record in part}):
        for split, part in records.items():
            mine = [
                (record, seen) for record, seen in zip(part, looks[split], strict=True) if record.category == category
            ]
            kinds = Counter(seen.kind for _, seen in mine if seen.kind).most_common()
            shown = [f"{kind} ({count})" for kind, count in kinds[:3]] + [f"{len(kinds) - 3} more"] * (len(kinds) > 3)
            anomalous = sum(record.label for record, _ in mine)
            masked = sum(record.mask is not None for record, _ in mine)
            counts = [len(mine) - anomalous, anomalous, masked, sum(not seen.kind for _, seen in mine)]
            table.add_row(category, split, *map(str, counts), ", ".join(shown))
    return table


def passed_over(records: Iterable[Record]) -> list[str]:
    """Say which files beside the images are no image of a kind that is read."""
    notes = []
    for folder in sorted({Path(record.path).parent for record in records}):
        names = [path.name for path in folder.glob("*") if path.is_file() and not path.name.startswith(".")]
        others = sorted(name for name in names if Path(name).suffix.lower() not in IMAGE_SUFFIXES)
        if others:
            known = ", ".join(sorted(IMAGE_SUFFIXES))
            notes.append(f"passed over in {folder}: {len(others)} file(s) such as {others[0]} (read are {known})")
    return notes


def duplicates(records: dict[str, list[Record]], looks: dict[str, list[Look]]) -> list[str]:
    """Name the test images that were trained on."""
    trained = {seen.digest: record.path for record, seen in zip(records["train"], looks["train"], strict=True)}
    return [
        f"test image {record.path} has the very pixels of training image {trained[seen.digest]}: remove one of them"
        for record, seen in zip(records["test"], looks["test"], strict=True)
        if seen.digest and seen.digest in trained
    ]


def few_normals(source: Source, fraction: float, seed: int) -> list[str]:
    """Say which category has too few normal images to hold some out for validation."""
    from adlight.data.datamodule import split_normals  # torch takes seconds: not for --help

    try:
        split_normals(source.train(), fraction, seed)
    except UserError as error:
        return [str(error)]
    return []


def unmasked(records: list[Record]) -> list[str]:
    """Name the categories of which only some anomalous images have a mask; without any there are no pixel metrics."""
    problems = []
    for category in sorted({record.category for record in records}):
        mine = [record for record in records if record.category == category and record.label]
        without = [record for record in mine if record.mask is None]
        if 0 < len(without) < len(mine):
            problems.append(
                f"{len(without)} of {len(mine)} anomalous images of {category} have no mask, the first: "
                f"{without[0].path}: add it, as pixel metrics take such an image for free of defects"
            )
    return problems


def orphans(source: MVTecAD) -> list[str]:
    """Name the masks whose image is missing."""
    problems = []
    for category in source.found() if source.wanted is None else source.wanted:
        folder = source.root / category
        for defect in list_folders(folder / "ground_truth"):
            stems = {path.stem for path in list_images(folder / "test" / defect)}
            for mask in list_images(folder / "ground_truth" / defect):
                if not {mask.stem, mask.stem.removesuffix("_mask")} & stems:
                    problems.append(
                        f"mask {mask} has no image in {folder / 'test' / defect}: add that or remove the mask"
                    )
    return problems
