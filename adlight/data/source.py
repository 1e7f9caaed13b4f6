"""What a data set is: a list of normal records to train on, a labelled list to test on, and how to read one."""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from adlight.data.images import read_image, to_mask
from adlight.types import Record, UserError


class Source:
    """Base of the data sets: `train()` and `test()` list records, `read` and `read_mask` read one.

    Attributes:
        name: the data set's name, as in `dataset=<name>`.
        protocol: one line that says what counts as normal and what is tested; every result carries it.
    """

    name = "images"
    protocol = ""

    def prepare(self) -> None:
        """Download or generate what is missing; called on one process of a machine before reading."""

    def train(self) -> list[Record]:
        """List the normal training images.

        Raises:
            UserError: nothing there; the text says what was expected and what was found.
        """
        raise NotImplementedError

    def test(self) -> list[Record]:
        """List the labelled test images; empty where the user has none."""
        raise NotImplementedError

    def read(self, record: Record) -> Image.Image:
        """Read one image, in any mode.

        Raises:
            UserError: the file cannot be read as an image; the text names it.
        """
        return read_image(record.path)

    def read_mask(self, record: Record, size: tuple[int, int]) -> Image.Image | None:
        """Read a record's mask (mode L, 0 or 255), None where it has none.

        Args:
            record: the image whose mask is wanted.
            size: the image's own (width, height), which the mask must share.

        Raises:
            UserError: the mask cannot be read, or is of another size than its image.
        """
        if record.mask is None:
            return None
        mask = read_image(record.mask)
        if mask.size != size:
            raise UserError(
                f"mask {record.mask} is {mask.size[0]}x{mask.size[1]}, its image {record.path} is "
                f"{size[0]}x{size[1]}: a mask must have its image's size"
            )
        return Image.fromarray(to_mask(mask).astype(np.uint8) * 255)


def subsample(records: Sequence[Record], limit: int | None, seed: int) -> list[Record]:
    """Draw at most `limit` records, mixed: normal and anomalous ones in the share that the whole list has.

    The draw depends on the list and the seed alone; the order is kept. With a limit of 2 or more, each label
    that occurs is drawn.
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


def balanced(records: Sequence[Record], seed: int) -> list[Record]:
    """Keep all normal records and as many anomalous ones, drawn by seed; the order is kept."""
    anomalous = [i for i, record in enumerate(records) if record.label == 1]
    normal = [i for i, record in enumerate(records) if record.label == 0]
    drawn = np.random.default_rng(seed).permutation(anomalous)[: len(normal)]
    return [records[i] for i in sorted(normal + drawn.tolist())]


def check_limits(**limits: int | None) -> None:
    """Refuse limits below 1.

    Raises:
        UserError: names the first such limit and its value.
    """
    for name, limit in limits.items():
        if limit is not None and limit < 1:
            raise UserError(f"dataset.{name}={limit}: must be at least 1, or null for no limit")


def limits_note(train_limit: int | None, test_limit: int | None, seed: int) -> str:
    """What a protocol says of limits: empty without any."""
    limits = {"training images": train_limit, "mixed test images": test_limit}
    notes = [f"at most {limit:,} {what}" for what, limit in limits.items() if limit is not None]
    return f"; drawn with seed {seed}: {', '.join(notes)}" if notes else ""


def count_unmasked(records: Iterable[Record]) -> int:
    """Count the anomalous records without a mask, which pixel metrics cannot use."""
    return sum(record.label == 1 and record.mask is None for record in records)
