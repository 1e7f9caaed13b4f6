"""Regions of interest: masks of the pixels that count; all other pixels become grey for every detector."""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from adlight.data.arrays import allocate, bands
from adlight.data.frames import Frame
from adlight.data.image_files import read_image
from adlight.data.images import FILL, PreparedImage, Selection, to_channels
from adlight.data.listing import IMAGE_SUFFIXES, is_folder
from adlight.types import Record, UserError


class RegionOfInterest:
    """One mask for all images, or a folder of masks for images or categories.

    In a folder, the mask of `.../bottle/test/hole/000.png` is the first existing file among `bottle/test/hole/000`,
    `test/hole/000`, `hole/000`, `000` and, by the image's category, `bottle`, with the suffix of an image. Pixels that
    are not black count. A mask has the aspect ratio of its images, and is scaled to their size.
    """

    def __init__(self, place: str | Path) -> None:
        self.place = Path(place).expanduser()
        self.is_folder = is_folder(self.place)
        if not self.is_folder and not self.place.is_file():
            raise UserError(f"roi={place} is neither a mask nor a folder of masks")

    def find(self, path: str | Path | None, category: str | None = None) -> Path:
        """Find the mask of an image; raise a UserError if there is none."""
        if not self.is_folder:
            return self.place
        parts = Path(path).absolute().with_suffix("").parts[1:] if path else ()
        names = ["/".join(parts[i:]) for i in range(max(0, len(parts) - 4), len(parts))]
        for name in [*names, *([category] if category else [])]:
            for suffix in sorted(IMAGE_SUFFIXES):
                if (mask := self.place / f"{name}{suffix}").is_file():
                    return mask
        raise UserError(
            f"no region of interest of {path or 'an image without a path'} in {self.place}: add a mask named like the "
            f"image{f' or its category, {category}' if category else ''}"
        )

    def check(self, records: Iterable[Record]) -> None:
        """Raise a UserError if the mask of a record is missing or unreadable."""
        for mask in {self.find(record.path, record.category) for record in records}:
            _read_mask(mask, mask.stat().st_mtime_ns)

    def apply(
        self, image: Image.Image, channels: int, frame: Frame, path: str | Path | None, category: str | None
    ) -> tuple[Image.Image, np.ndarray]:
        """Make the pixels of an upright image outside the region grey, before resizing mixes them with the inside.

        Returns:
            The image, in 8 bits and 1 or 3 channels (unchanged if it is not resized), and the region of interest in the
            frame, (H, W) bool.

        Raises:
            UserError: there is no mask for the path or category, or it cannot be used.
        """
        place = self.find(path, category)
        mask = _read_mask(place, place.stat().st_mtime_ns)
        if abs(mask.width * image.height - mask.height * image.width) > max(*image.size, *mask.size):
            raise UserError(
                f"region of interest {place} is {mask.width}x{mask.height}, its image is {image.width}x{image.height}: "
                "both must have the same shape"
            )
        height, width = frame.fit(*image.size)
        scaled, content = mask, allocate((height, width), bool)
        if mask.size != (width, height):
            scaled = mask.resize((width, height), Image.Resampling.NEAREST)
        for rows in bands((height, width)):
            content[rows] = np.asarray(scaled.crop((0, rows.start, width, rows.stop)))
        content = frame.cut(content)
        if not content.any():
            raise UserError(f"region of interest {place} leaves nothing of {path}: too few of its pixels are not black")
        if image.size == (width, height):
            return image, content  # resizing mixes nothing; `to_input_array` makes the outside grey
        image = to_channels(image, channels)
        grey = Image.new(image.mode, image.size, FILL if channels == 1 else (FILL,) * 3)
        return Image.composite(image, grey, mask.resize(image.size, Image.Resampling.NEAREST)), content


@lru_cache(maxsize=32)
def _read_mask(path: Path, modified: int) -> Image.Image:
    image = read_image(path)
    grey = np.asarray(to_channels(image, 1)) > (127 if image.format == "JPEG" else 0)
    if not grey.any():
        raise UserError(f"region of interest {path} is black: paint the pixels that count white")
    return Image.fromarray(grey.astype(np.uint8) * 255)


def check_selection(takes_padding: bool, keep_shape: bool, roi: str | Path | None, tiling: object | None) -> None:
    """Raise a UserError if a trained model does not support a region of interest or tiles."""
    if roi and not takes_padding:
        raise UserError(f"roi={roi}: this model scores whole images and looks across a region's border: leave roi out")
    if keep_shape and (roi or tiling):
        raise UserError("roi and tile need keep_shape=false, and this model was trained with keep_shape=true")


def make_selection(
    place: str | Path | None, channels: int, frame: Frame, categorize: Callable[[Path | None], str | None]
) -> Selection | None:
    """Make a function of an image and its path that applies a region of interest; None if there is none."""
    if place is None:
        return None
    return partial(_select, RegionOfInterest(place), channels, frame, categorize)


def _select(  # a function of a module, so that it can be pickled
    roi: RegionOfInterest,
    channels: int,
    frame: Frame,
    categorize: Callable[[Path | None], str | None],
    image: Image.Image,
    path: Path | None,
) -> tuple[Image.Image, np.ndarray]:
    return roi.apply(image, channels, frame, path, categorize(path))


def stack_contents(images: Sequence[PreparedImage]) -> np.ndarray | None:
    """Stack the regions of interest of images. -> (B, H, W) bool; None if there are none."""
    found = [image.content for image in images if image.content is not None]
    return _stack(found) if found else None


def stack_pixels(images: Sequence[PreparedImage]) -> np.ndarray:
    """Stack the pixels of images in the same frame. -> (B, C, H, W) uint8."""
    return _stack([image.pixels for image in images])


def _stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(arrays) if len(arrays) > 1 else arrays[0][None]  # a single array, perhaps large, is not copied
