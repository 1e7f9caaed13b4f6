"""Checks before training: list both splits, read headers and masks, and report everything that is left out."""

import filecmp
import math
import os
from collections import defaultdict
from collections.abc import Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from adlight.data.frames import MIN_SIDE, Frame
from adlight.data.image_files import read_16_bit_peak
from adlight.data.listing import describe_left_out, scan
from adlight.data.roi import RegionOfInterest
from adlight.data.source import Source
from adlight.data.tiling import Tiling, describe_tiles
from adlight.types import Record, UserError

SAMPLE = 2048  # number of bytes read at each of three positions of a file
PEAKS, DARK = 16, 2**14  # number of 16-bit images that are read, and the value that some pixel should reach


def check_before_training(
    source: Source, frame: Frame, skip: bool = False, roi: RegionOfInterest | None = None, tiling: Tiling | None = None
) -> list[str]:
    """List both splits, and read every mask and the header of every image. -> remarks for the user, in lines.

    With `skip`, unreadable images are left out, and reported later.

    Raises:
        UserError: there is nothing to test, or a file is unusable; the message counts the other problems.
    """
    if min(frame.size) < MIN_SIDE:
        raise UserError(f"image_size={min(frame.size)} is too small for the windows of scores: raise it to {MIN_SIDE}")
    train, test = source.train(), source.test()
    if not test:
        raise UserError(f"nothing to test: {source.protocol}: add images")
    if roi is not None:
        roi.check([*train, *test])
    problems = [] if skip else _find_unusable(source, frame, [*train, *test])
    problems += source.find_orphan_masks()
    if problems:
        others = f" ({len(problems) - 1} more: adlight doctor lists them)" if problems[1:] else ""
        raise UserError(problems[0] + others)
    tiles = describe_tiles(tiling, source.sizes()) if tiling else []
    notes = [*find_unmasked(source, test), *find_copies(train, test), *find_dark_images(train)]
    return [*notes, *list_left_out(source), *tiles]


def _find_unusable(source: Source, frame: Frame, records: list[Record]) -> list[str]:
    def find_problem(record: Record) -> str | None:
        try:
            if (size := source.check_files(record)) is not None:
                frame.fit(*size)
        except UserError as error:
            return str(error)
        except ValueError as error:
            return f"cannot read image {record.path}: {error}"
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # only masks are decoded, which releases the GIL
        masked = pool.map(find_problem, [record for record in records if record.mask])
        problems = [find_problem(record) for record in records if not record.mask] + list(masked)
    return [problem for problem in problems if problem]


def list_left_out(source: Source) -> list[str]:
    """Report folders that no setting names, and the files elsewhere in the data set that belong to neither split."""
    whole = source.whole()
    found: dict[str, set[Path]] = defaultdict(set)
    used = {name for record in [*whole.train(), *whole.test()] for name in (record.path, record.mask)}
    for folder in source.folders():
        for kind, paths in scan(folder).items():
            found[kind or "images of neither split"].update(path for path in paths if str(path) not in used)
    line = describe_left_out({kind: (len(paths), min(paths)) for kind, paths in found.items() if paths})
    return [*source.find_unused(), *([line] if line else [])]


def find_copies(train: list[Record], test: list[Record]) -> list[str]:
    """Report images whose files equal those of training images.

    Files are compared completely only if their lengths and samples of their bytes are equal.
    """
    trained = {record.path for record in train}
    files = [path for path in dict.fromkeys(record.path for record in [*train, *test]) if os.path.isfile(path)]
    by_length = _group_equal((path, os.path.getsize(path)) for path in files)
    by_sample = _group_equal((path, _sample(path)) for paths in by_length for path in paths)
    pairs = [
        (path, paths[0])  # training images come first
        for paths in by_sample
        for path in paths[1:]
        if paths[0] in trained and filecmp.cmp(path, paths[0], shallow=False)
    ]
    notes = []
    for text, is_trained in (
        ("test image(s) are the same files as training images, so that their scores say nothing", False),
        ("training image(s) are copies of others, which may make thresholds too low", True),
    ):
        if found := [pair for pair in pairs if (pair[0] in trained) == is_trained]:
            notes.append(f"{len(found)} {text}: remove them; the first: {found[0][0]} and {found[0][1]}")
    return notes


def _group_equal(keys: Iterable[tuple[str, Hashable]]) -> list[list[str]]:
    groups = defaultdict(list)
    for path, key in keys:
        groups[key].append(path)
    return [paths for paths in groups.values() if len(paths) > 1]


def _sample(path: str) -> Hashable:
    length, parts = os.path.getsize(path), []
    with open(path, "rb") as file:
        for quarter in (1, 2, 3):
            file.seek(length * quarter // 4)
            parts.append(file.read(SAMPLE))
    return length, *parts


def find_dark_images(records: list[Record]) -> list[str]:
    """Report 16-bit images that use only a few bits, such as images of 12-bit cameras; only a sample is read."""
    sample = records[:: math.ceil(len(records) / PEAKS) or 1]
    peaks = [peak for record in sample if (peak := read_16_bit_peak(record.path)) is not None]
    if not peaks or (brightest := max(peaks)) >= DARK:
        return []
    levels, factor = f"no more than {brightest >> 8} of 255 grey levels are left", 2**16 >> brightest.bit_length()
    return [f"16-bit images reach only {brightest} of 65535: {levels}; multiply all values by {factor}"]


def find_unmasked(source: Source, test: list[Record]) -> list[str]:
    """Report categories in which anomalous images lack masks, if the data set should have masks or has any."""
    if not source.needs_masks and not any(record.mask for record in test):
        return []
    problems = []
    for category in sorted({record.category for record in test}):
        anomalous = [record for record in test if record.category == category and record.label]
        if without := [record.path for record in anomalous if record.mask is None]:
            problems.append(
                f"{len(without)} of {len(anomalous)} anomalous images of {category} have no mask, such as "
                f"{without[0]}: the pixel metrics of {category} are left out unless all have masks"
            )
    return problems
