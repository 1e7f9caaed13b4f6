"""The doctor's checks of a data set: every image and mask is read, on all cores."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

from rich.table import Table

from adlight.data.frames import Frame, count_most_common, describe_shapes
from adlight.data.image_files import UnreadableImage
from adlight.data.images import to_channels
from adlight.data.preflight import find_dark_images, find_unmasked, list_left_out
from adlight.data.source import Source
from adlight.progress import track
from adlight.types import Record, UserError


class ImageCheck(NamedTuple):
    """The result of reading the files of one record."""

    size: tuple[int, int] = (0, 0)  # width and height
    kind: str = ""  # such as `900x900 RGB`; empty if the image is unreadable
    digest: bytes = b""  # hash of the pixels, which does not depend on the file format
    problem: str | None = None


Checked = dict[str, list[tuple[Record, ImageCheck]]]  # by split


def check_source(source: Source, frame: Frame) -> tuple[list[str | Table], list[str]]:
    """Read a whole data set, ignoring its limits. -> findings to print, and problems."""
    source = source.whole()
    problems: list[str] = []
    checked: Checked = {}
    for split, list_records in (("train", source.train), ("test", source.test)):
        checked[split] = []
        with _collect_errors(problems):
            checked[split] = check_records(source, frame, list_records(), split)
    train, test = ([record for record, _ in part] for part in checked.values())
    problems += [check.problem for part in checked.values() for _, check in part if check.problem]
    problems += find_duplicates(checked) + find_unmasked(source, test) + find_dark_images(train)
    findings: list[str | Table] = [source.protocol]
    if train or test:
        sizes = [check.size for _, check in checked["train"] if check.kind]
        findings += [summarize(checked), describe_shapes(sizes, min(frame.size))]
    if not problems and not test:
        problems.append(f"nothing to test: {source.protocol}: add images")
    with _collect_errors(problems):
        problems += source.find_orphan_masks()
        findings += list_left_out(source)
    return findings, list(dict.fromkeys(problems))


@contextmanager
def _collect_errors(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        problems.append(str(error))


def check_records(source: Source, frame: Frame, records: list[Record], split: str) -> list[tuple[Record, ImageCheck]]:
    """Decode records on all cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the GIL
        done = pool.map(lambda record: check_image(source, frame, record), records)
        return list(zip(records, track(done, f"reading {split}", len(records)), strict=True))


def check_image(source: Source, frame: Frame, record: Record) -> ImageCheck:
    """Decode an image and its mask."""
    try:
        image = source.read(record)
        frame.fit(*image.size)
        digest = hashlib.blake2b(to_channels(image, 3).tobytes(), digest_size=16, key=str(image.size).encode()).digest()
    except UnreadableImage as error:
        return ImageCheck(problem=str(error))
    except Exception as error:  # decoders raise many types of errors; the message names the file
        return ImageCheck(problem=f"cannot read image {record.path}: {error}")
    kind, problem = f"{image.size[0]}x{image.size[1]} {image.mode}", None
    try:
        source.read_mask(record, image.size)
    except UserError as error:
        problem = str(error)
    return ImageCheck(image.size, kind, digest, problem)


def summarize(checked: Checked) -> Table:
    """Make a table of the findings, with one row per category and split."""
    table = Table(title="images", title_justify="left")
    for title in ("category", "split", "normal", "anomalous", "with mask", "unreadable", "sizes and modes"):
        is_text = title in ("category", "split", "sizes and modes")
        table.add_column(title, justify="left" if is_text else "right", overflow="fold")
    for category in sorted({record.category for part in checked.values() for record, _ in part}):
        for split, part in checked.items():
            rows = [(record, check) for record, check in part if record.category == category]
            anomalous = sum(record.label for record, _ in rows)
            masked = sum(record.mask is not None for record, _ in rows)
            counts = [len(rows) - anomalous, anomalous, masked, sum(not check.kind for _, check in rows)]
            kinds = count_most_common(check.kind for _, check in rows if check.kind)
            table.add_row(category, split, *map(str, counts), kinds)
    return table


def find_duplicates(checked: Checked) -> list[str]:
    """Report test images with the same pixels as a training image."""
    trained = {check.digest: record.path for record, check in checked["train"] if check.digest}
    return [
        f"test image {record.path} has the same pixels as training image {trained[check.digest]}: remove one of them"
        for record, check in checked["test"]
        if check.digest in trained
    ]
