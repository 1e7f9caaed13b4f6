"""Checks before a training: both splits are listed, headers and masks are read, and nothing is left out in silence."""

import filecmp
import os
from collections import defaultdict
from collections.abc import Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from adlight.data.frames import THINNEST, Frame
from adlight.data.listing import describe_left_out, list_folders, list_images, scan
from adlight.data.mvtec import MVTecAD
from adlight.data.roi import RegionOfInterest
from adlight.data.source import Source
from adlight.data.tiling import Tiling, describe_tiles
from adlight.types import Record, UserError

SAMPLE = 2048  # bytes of a file, at three places


def check_before_training(
    source: Source,
    frame: Frame,
    skip: bool = False,
    roi: RegionOfInterest | None = None,
    tiling: Tiling | None = None,
) -> list[str]:
    """List both splits, read every image's header and every mask. -> what a user should know, in lines.

    Args:
        source: the data set.
        frame: into which its images are brought.
        skip: files that cannot be read are left out later on, and told then.
        roi: what of the images counts; None: all.
        tiling: cuts the images into tiles; None: they are looked at as a whole.

    Raises:
        UserError: nothing to test, or something is wrong with a file; the text says how many others there are.
    """
    if min(frame.size) < THINNEST:
        raise UserError(f"image_size={min(frame.size)} is too small for the windows of scores: raise it to {THINNEST}")
    train, test = source.train(), source.test()
    if not test:
        raise UserError(f"nothing to test: {source.protocol}")

    if roi is not None:
        roi.check([*train, *test])

    def find_problem(record: Record) -> str | None:
        try:
            if (size := source.check_files(record)) is not None:
                frame.fit(*size)
        except UserError as error:
            return str(error)
        except ValueError as error:
            return f"cannot read image {record.path}: {error}"
        return None

    problems: list[str | None] = []
    if not skip:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # masks are decoded without the GIL; headers are no work
            masked = pool.map(find_problem, [record for record in test if record.mask])
            problems += [find_problem(record) for record in [*train, *test] if not record.mask] + list(masked)
    found = [problem for problem in problems if problem] + find_orphan_masks(source)
    if found:
        others = f" ({len(found) - 1} more: python -m adlight.doctor lists them)" if found[1:] else ""
        raise UserError(found[0] + others)
    tiles = describe_tiles(tiling, source.sizes()) if tiling else []
    return [*find_unmasked(source, test), *find_copies(train, test), *list_left_out(source), *tiles]


def list_left_out(source: Source) -> list[str]:
    """Count the files in the data set's folders that are no part of it, whatever its limits: one line, or none."""
    whole = source.whole()
    found: dict[str, set[Path]] = defaultdict(set)
    used = {name for record in [*whole.train(), *whole.test()] for name in (record.path, record.mask)}
    for folder in source.folders():
        for kind, paths in scan(folder).items():
            found[kind or "images of neither split"].update(path for path in paths if str(path) not in used)
    return [line] if (line := describe_left_out(found)) else []


def find_copies(train: list[Record], test: list[Record]) -> list[str]:
    """Tell of images whose file is also that of a training image; most files are told apart by their lengths."""
    trained = {record.path for record in train}
    by_length = _group((path, os.path.getsize(path)) for path in _files([*train, *test]))
    by_sample = _group((path, _sample(path)) for paths in by_length for path in paths)
    pairs = [
        (path, paths[0])  # training images come first
        for paths in by_sample
        for path in paths[1:]
        if paths[0] in trained and filecmp.cmp(path, paths[0], shallow=False)
    ]
    notes = []
    for said, found in (
        ("test image(s) are the same files as training images", [pair for pair in pairs if pair[0] not in trained]),
        ("training image(s) are copies of others", [pair for pair in pairs if pair[0] in trained]),
    ):
        if found:
            notes.append(f"{len(found)} {said}, the first: {found[0][0]} and {found[0][1]}")
    return notes


def _files(records: Iterable[Record]) -> list[str]:
    return [path for path in dict.fromkeys(record.path for record in records) if os.path.isfile(path)]


def _group(keys: Iterable[tuple[str, Hashable]]) -> list[list[str]]:
    groups = defaultdict(list)
    for path, key in keys:
        groups[key].append(path)
    return [paths for paths in groups.values() if len(paths) > 1]


def _sample(path: str) -> tuple[bytes, ...]:
    length, parts = os.path.getsize(path), []
    with open(path, "rb") as file:
        for quarter in (1, 2, 3):
            file.seek(length * quarter // 4)
            parts.append(file.read(SAMPLE))
    return (str(length).encode(), *parts)


def find_unmasked(source: Source, test: list[Record]) -> list[str]:
    """Name the categories of which anomalous images lack a mask, where others have one or the layout asks for it."""
    if not any(record.mask for record in test) and not isinstance(source, MVTecAD):
        return []
    problems = []
    for category in sorted({record.category for record in test}):
        anomalous = [record for record in test if record.category == category and record.label]
        if without := [record.path for record in anomalous if record.mask is None]:
            problems.append(
                f"{len(without)} of {len(anomalous)} anomalous images of {category} have no mask, the first: "
                f"{without[0]}: the pixel metrics of {category} are left out"
            )
    return problems


def find_orphan_masks(source: Source) -> list[str]:
    """Name the masks in MVTec AD's layout whose image is missing; other sets refuse them when they are listed."""
    if not isinstance(source, MVTecAD):
        return []
    problems = []
    for category in source.categories():
        for defect in list_folders(source.root / category / "ground_truth"):
            folder = source.root / category / "test" / defect
            stems = {path.stem for path in list_images(folder)}
            for mask in list_images(source.root / category / "ground_truth" / defect):
                if not {mask.stem, mask.stem.removesuffix("_mask")} & stems:
                    problems.append(f"mask {mask} has no image in {folder}: add it, rename the mask or remove it")
    return problems
