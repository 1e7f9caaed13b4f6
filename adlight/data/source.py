"""What a data set is: a list of normal records to train on, a labelled list to test on, and how to read one.

Images of any usual kind are accepted (PNG, JPEG, BMP, TIFF; grey, RGB, RGBA, palette, 16-bit). The rule:
alpha is dropped, 16-bit values are divided by 256, and the image becomes 3 channels, or 1 where `channels=1`
is asked for. A mask's pixel is defective where it is not black; in a JPEG, whose compression leaves grey
beside every edge, where it is brighter than 127.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from adlight.types import Record, UserError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
# all that Pillow raises on damaged files (20,000 cut or altered files of these kinds were tried)
READ_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


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
        # 16-bit masks are not divided by 256: many tools write 1 or 255 into them
        grey = np.asarray(mask if mask.mode[0] in "L1I" and mask.mode != "LA" else to_channels(mask, 1))
        return Image.fromarray(((grey > (127 if mask.format == "JPEG" else 0)) * 255).astype(np.uint8))


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


def list_images(folder: Path) -> list[Path]:
    """List the image files of a folder and its sub-folders, sorted; hidden files are passed over."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def subfolders(folder: Path) -> list[str]:
    """Names of the visible folders in `folder`, sorted; empty if it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def describe_folder(folder: Path) -> str:
    """What lies in a folder, for error messages."""
    if not folder.is_dir():
        return "a file" if folder.exists() else "no such folder"
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "") or "an empty folder"


def read_image(path: str) -> Image.Image:
    """Decode an image file fully.

    Raises:
        UserError: the file is missing, truncated or no image.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except READ_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"cannot read image {path}: {reason} (mend or remove it, or dataset.on_bad_image=skip)"
        ) from error


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Bring an image of any mode to 8 bits and 1 or 3 channels, by the rule at the top of this file.

    Raises:
        UserError: floating-point pixels, whose range is unknown.
    """
    if image.mode == "F":
        raise UserError("floating-point pixels have no known range: save the image with 8 or 16 bits a channel")
    if image.mode.startswith("I"):  # 16-bit grey; Pillow opens some of them as 32-bit integers
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA"):
        image = image.convert("RGBA").convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


def to_input_array(image: Image.Image, channels: int, size: int, resize: int | None = None) -> np.ndarray:
    """Bring an image to (C, size, size) uint8, antialiased; the aspect ratio is not kept.

    With `resize` it is brought to that side, of which the centre of `size` is kept.
    """
    image, side = to_channels(image, channels), resize or size
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=3.0)
    array = center_crop(np.asarray(image), size)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def center_crop(array: np.ndarray, size: int) -> np.ndarray:
    """The centre (size, size, ...) of a square (H, H, ...)."""
    before = (len(array) - size) // 2
    return array[before : before + size, before : before + size]


def pad_center(maps: np.ndarray, side: int) -> np.ndarray:
    """Put (..., size, size) back in the centre of (..., side, side), where `center_crop` took it; the rest is 0."""
    before = (side - maps.shape[-1]) // 2
    after = side - maps.shape[-1] - before
    return np.pad(maps, [(0, 0)] * (maps.ndim - 2) + [(before, after)] * 2)
