"""What a data set is: normal records to train on, labelled records to test on, and how to read one."""

import math
from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from PIL import Image
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass

from adlight.data.headers import UnreadableImage, read_size, seems_cut
from adlight.data.images import read_image, to_mask
from adlight.data.listing import describe_folder, list_images
from adlight.settings import STRICT, Seed, Text
from adlight.types import Record, UserError

Limit = PositiveInt | None  # largest number of images; None for all
Names = Text | int | Annotated[Sequence[Text | int], Field(min_length=1)]  # of folders, which may be numbers

NORMAL_NAMES = {"good", "normal", "ok"}
MASK_NAMES = {"mask", "masks", "ground_truth", "groundtruth", "ground truth", "gt", "annotations", "segmentation"}


class Source:
    """Base of the data sets: `train()` and `test()` list records, `read` and `read_mask` read one.

    Attributes:
        protocol: one line that says what counts as normal and what is tested; every result carries it.
        sampling: which records of each split are used, where that can be limited.
    """

    protocol = ""
    sampling: "Sampling"

    def prepare(self) -> None:
        """Download or generate what is missing; called on one process of a machine before reading."""

    def train(self) -> list[Record]:
        """List the normal training images.

        Raises:
            UserError: nothing there; the message says what was expected and what was found.
        """
        raise NotImplementedError

    def test(self) -> list[Record]:
        """List the labelled test images; empty where the user has none."""
        raise NotImplementedError

    def folders(self) -> list[Path]:
        """List the folders all of whose images are expected to be used; none where files are not read one by one."""
        return []

    def whole(self) -> Self:
        """Return the data set without the limits that cut it."""
        whole = copy(self)
        whole.sampling = Sampling()
        return whole

    def sizes(self) -> list[tuple[int, int]]:
        """Read the widths and heights of training images, of 500 where there are more; empty if all are of one size.

        Images that cannot be read are left out: whoever reads them says so.
        """
        records, sizes = self.train(), []
        for record in records[:: math.ceil(len(records) / 500)]:
            with suppress(UnreadableImage):
                sizes.append(read_size(record.path))
        return sizes

    def check_files(self, record: Record) -> tuple[int, int] | None:
        """Read an image's header and all of its mask. -> its width and height; None where it is read in another way.

        Raises:
            UserError: as `read` and `read_mask` do.
        """
        if type(self).read is not Source.read:
            return None
        size = self.read(record).size if seems_cut(record.path) else read_size(record.path)
        try:
            self.read_mask(record, size)
        except UserError:
            self.read_mask(record, size := self.read(record).size)  # the header of a PNG may not know where up is
        return size

    def read(self, record: Record) -> Image.Image:
        """Read one image, in any mode.

        Raises:
            UserError: the file cannot be read as an image; the message names it.
        """
        return read_image(record.path)

    def read_mask(self, record: Record, size: tuple[int, int]) -> Image.Image | None:
        """Read a record's mask (mode L, 0 or 255), None where it has none.

        Args:
            record: the image whose mask is read.
            size: the image's own (width, height), which the mask must share.

        Raises:
            UserError: the mask cannot be read, or its size differs from its image's.
        """
        if record.mask is None:
            return None
        mask = read_image(record.mask)
        if mask.size != size:
            sizes = "x".join(map(str, mask.size)), "x".join(map(str, size))
            turned = " (images are turned upright as their EXIF data say)" if mask.size == size[::-1] else ""
            raise UserError(
                f"mask {record.mask} is {sizes[0]}, its image {record.path} is {sizes[1]}{turned}: give both the same "
                "size"
            )
        try:
            return Image.fromarray(to_mask(mask).astype(np.uint8) * 255)
        except UserError as error:
            raise UserError(f"mask {record.mask} of {record.path}: {error}") from error


@dataclass(frozen=True, config=STRICT)
class Sampling:
    """Which records of a split are used; drawn by the seed alone, the order is kept.

    Args:
        train_limit: largest number of training images; None for all.
        test_limit: largest number of test images, normal and anomalous in the ratio of the whole split; None for all.
        balanced_test: test only as many anomalous images as normal ones.
        seed: of these draws.

    Raises:
        ValueError: a limit below 1.
    """

    train_limit: Limit = None
    test_limit: Limit = None
    balanced_test: bool = False
    seed: Seed = 0

    def train(self, records: Sequence[Record]) -> list[Record]:
        """Select training records."""
        return subsample(records, self.train_limit, self.seed)

    def test(self, records: Sequence[Record]) -> list[Record]:
        """Select test records."""
        kept = balance_labels(records, self.seed) if self.balanced_test else records
        return subsample(kept, self.test_limit, self.seed)

    def describe(self) -> str:
        """Describe the limits for a protocol; empty without any."""
        limits = {"training images": self.train_limit, "mixed test images": self.test_limit}
        notes = [f"at most {limit:,} {what}" for what, limit in limits.items() if limit is not None]
        return f"; drawn with seed {self.seed}: {', '.join(notes)}" if notes else ""


def subsample(records: Sequence[Record], limit: int | None, seed: int) -> list[Record]:
    """Draw at most `limit` records with the ratio of labels of the whole list.

    With a limit of 2 or more, each label that occurs is drawn.
    """
    if limit is None or limit >= len(records):
        return list(records)
    order = np.random.default_rng(seed).permutation(len(records))
    normal = [int(i) for i in order if records[i].label == 0]
    anomalous = [int(i) for i in order if records[i].label == 1]
    share = round(limit * len(anomalous) / len(records))
    if normal and anomalous and limit > 1:
        share = min(max(share, 1), limit - 1)
    return [records[i] for i in sorted(normal[: limit - share] + anomalous[:share])]


def balance_labels(records: Sequence[Record], seed: int) -> list[Record]:
    """Keep all normal records and draw as many anomalous ones."""
    anomalous = [i for i, record in enumerate(records) if record.label == 1]
    normal = [i for i, record in enumerate(records) if record.label == 0]
    drawn = np.random.default_rng(seed).permutation(anomalous)[: len(normal)]
    return [records[i] for i in sorted(normal + drawn.tolist())]


def means_normal(folder: str) -> bool:
    """Say whether a folder's name says that its images are normal."""
    return folder.strip().lower() in NORMAL_NAMES


def require_images(folder: Path, setting: str, without: Sequence[Path] = ()) -> list[Path]:
    """List the images of a folder that must hold some, without those of the folders in `without`.

    Raises:
        UserError: there are none; the message names the setting that led there and what is there instead.
    """
    if not folder.is_dir():
        raise UserError(f"{setting}: no folder {folder} (in its parent: {describe_folder(folder.parent)})")
    images = [image for image in list_images(folder) if not any(path in image.parents for path in without)]
    if not images:
        found = describe_folder(folder)
        raise UserError(f"{setting}: no images in {folder}: expected PNG, JPEG, BMP or TIFF, found {found}")
    return images
