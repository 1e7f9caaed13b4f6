"""The interface of data sets: normal images for training, labelled images for the test, and reading of images."""

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

from adlight.data.image_files import UnreadableImage, read_image, read_size, seems_truncated
from adlight.data.images import to_mask
from adlight.data.listing import describe_folder, list_images
from adlight.settings import STRICT, Seed, Text
from adlight.types import Record, UserError

Limit = PositiveInt | None  # largest number of images; None for all
Names = Text | int | Annotated[Sequence[Text | int], Field(min_length=1)]  # names of folders, which may be numbers


class Source:
    """Base class of data sets: `train` and `test` list records, `read` and `read_mask` read the files of a record.

    Attributes:
        protocol: one line about what counts as normal and what is tested, shown with every result.
        sampling: selects the records of each split, if their number can be limited.
        needs_masks: whether every anomalous test image should have a mask.
    """

    protocol = ""
    sampling: "Sampling"
    needs_masks = False

    def prepare(self) -> None:
        """Download or generate missing files; called in one process per machine before anything is read.

        Raises:
            UserError: this failed; the message tells which files to put where by hand, or which folder to choose.
        """

    def train(self) -> list[Record]:
        """List the normal training images; raise a UserError with the expected layout if there are none."""
        raise NotImplementedError

    def test(self) -> list[Record]:
        """List the labelled test images; empty if there are none."""
        raise NotImplementedError

    def folders(self) -> list[Path]:
        """List the folders whose images should all be used; empty if images are not separate files."""
        return []

    def find_orphan_masks(self) -> list[str]:
        """Report each mask whose image is missing, unless `test` already rejects such masks."""
        return []

    def find_unused(self) -> list[str]:
        """Describe folders of the user's that no setting names, in at most one line."""
        return []

    def whole(self) -> Self:
        """Return the data set without limits on the number of images."""
        whole = copy(self)
        whole.sampling = Sampling()
        return whole

    def sizes(self) -> list[tuple[int, int]]:
        """Read the widths and heights of at most 500 training images; empty if the data set has one fixed size.

        Unreadable images are skipped here, and reported when they are read.
        """
        records, sizes = self.train(), []
        for record in records[:: math.ceil(len(records) / 500)]:
            with suppress(UnreadableImage):
                sizes.append(read_size(record.path))
        return sizes

    def check_files(self, record: Record) -> tuple[int, int] | None:
        """Read an image's header and its whole mask, with the errors of `read` and `read_mask`.

        -> width and height; None if `read` does not read image files.
        """
        if type(self).read is not Source.read:
            return None
        size = self.read(record).size if seems_truncated(record.path) else read_size(record.path)
        try:
            self.read_mask(record, size)
        except UserError:
            self.read_mask(record, size := self.read(record).size)  # a PNG's header may lack the orientation
        return size

    def read(self, record: Record) -> Image.Image:
        """Read an image in any mode; raise a UserError that names the file if it is unreadable."""
        return read_image(record.path)

    def read_mask(self, record: Record, size: tuple[int, int]) -> Image.Image | None:
        """Read a record's mask (mode L, 0 or 255); None if it has none.

        Raises:
            UserError: the mask cannot be read, or its size is not its image's `size` (width, height).
        """
        if record.mask is None:
            return None
        mask = read_image(record.mask)
        if mask.size != size:
            sizes = "x".join(map(str, mask.size)), "x".join(map(str, size))
            turned = " (images are turned upright by their EXIF data)" if mask.size == size[::-1] else ""
            raise UserError(
                f"mask {record.mask} is {sizes[0]}, its image {record.path} is {sizes[1]}{turned}: both must have the "
                "same size"
            )
        try:
            return Image.fromarray(to_mask(mask).astype(np.uint8) * 255)
        except UserError as error:
            raise UserError(f"mask {record.mask} of {record.path}: {error}") from error


@dataclass(frozen=True, config=STRICT)
class Sampling:
    """Selects the records of a split to use; the selection depends only on the seed, and keeps the order.

    Args:
        train_limit: largest number of training images; None for all.
        test_limit: largest number of test images, with the whole split's ratio of labels; None for all.
        balanced_test: whether to test only as many anomalous as normal images.
        seed: seed of the draws.
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
        """Describe the limits for a protocol; empty without limits."""
        limits = {"training images": self.train_limit, "mixed test images": self.test_limit}
        notes = [f"at most {limit:,} {images}" for images, limit in limits.items() if limit is not None]
        return f"; drawn with seed {self.seed}: {', '.join(notes)}" if notes else ""


def subsample(records: Sequence[Record], limit: int | None, seed: int) -> list[Record]:
    """Draw at most `limit` records with the whole list's ratio of labels; with 2 or more, both labels occur."""
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
    """Keep all normal records, and draw as many anomalous records."""
    anomalous = [i for i, record in enumerate(records) if record.label == 1]
    normal = [i for i, record in enumerate(records) if record.label == 0]
    drawn = np.random.default_rng(seed).permutation(anomalous)[: len(normal)]
    return [records[i] for i in sorted(normal + drawn.tolist())]


def require_images(folder: Path, setting: str, without: Sequence[Path] = ()) -> list[Path]:
    """List the images of a folder, except those in the folders `without`.

    Raises:
        UserError: there are none; the message names the setting of the folder, and what the folder holds.
    """
    if not folder.is_dir():
        place = next(parent for parent in folder.absolute().parents if parent.is_dir())
        raise UserError(f"{setting}: no folder {folder} ({place} holds {describe_folder(place)})")
    images = [image for image in list_images(folder) if not any(path in image.parents for path in without)]
    if not images:
        found = describe_folder(folder)
        raise UserError(f"{setting}: no images in {folder}: expected PNG, JPEG, BMP or TIFF, found {found}")
    return images
