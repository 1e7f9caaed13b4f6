"""Images decoded once: a split as one uint8 tensor in memory."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from adlight.data.decoded import Decoded, damage, open_or_write
from adlight.data.frames import Frame
from adlight.data.headers import UnreadableImage
from adlight.data.images import fill_outside, to_input_array
from adlight.data.roi import RegionOfInterest
from adlight.data.source import Source
from adlight.types import Batch, Record, UserError

PROGRESS_FROM = 500  # images; a bar over fewer would be gone before anyone could read it


class DecodedImage(NamedTuple):
    """One record, decoded and brought into the frame."""

    image: np.ndarray  # (C, H, W) uint8
    mask: np.ndarray | None  # (H, W) bool, None where there is none
    size: tuple[int, int]  # height and width of what is no padding
    content: np.ndarray | None  # (H, W) bool, the region of interest


class CachedImageDataset(Dataset):
    """The images of a split at one size, fetched as whole batches.

    With `cache` all images are decoded once, on all cores, into (N, C, H, W) uint8; later epochs read no file.
    Without it they are decoded at every fetch.

    Args:
        source: reads the records.
        records: what to read.
        categories: names in the order of `Batch["category"]`.
        frame: into which images and masks are brought.
        channels: 1 or 3.
        cache: keep the decoded images.
        file: of `name_file`, in which they are kept; None: in memory.
        on_bad_image: `error`, or `skip`: leave out an unreadable image and keep its message in `skipped`.
        roi: what of the images counts; None: all.

    Raises:
        UserError: an unreadable image, a mask whose size differs from its image's, or a file that cannot be written.
    """

    def __init__(
        self,
        source: Source,
        records: Sequence[Record],
        categories: Sequence[str],
        *,
        frame: Frame,
        channels: int = 3,
        cache: bool = True,
        file: Path | None = None,
        on_bad_image: str = "error",
        roi: RegionOfInterest | None = None,
    ) -> None:
        self.source, self.records, self.roi = source, list(records), roi
        self.frame, self.channels, self.cache, self.file = frame, channels, cache, file
        self.skip, self.skipped = on_bad_image == "skip", list[str]()
        self.decoded: Decoded | None = None
        self.contents = torch.empty(0)  # regions of interest (N, H, W) bool, in memory only
        self.rows: Tensor | None = None  # of the records in `decoded`, where some are left out
        if cache or self.skip:
            self._decode()
        position = {name: i for i, name in enumerate(categories)}
        self.labels = torch.tensor([record.label for record in self.records])
        self.category = torch.tensor([position[record.category] for record in self.records])

    def read(self, record: Record) -> DecodedImage:
        """Decode one record."""
        try:
            image, content = self.source.read(record), None
            if self.roi is not None:
                image, content = self.roi.apply(image, self.channels, self.frame, record.path, record.category)
            pixels = to_input_array(image, self.channels, self.frame)
        except UnreadableImage:
            raise
        except Exception as error:  # whatever a decoder raises, the user needs the file's name
            raise UserError(f"cannot read image {record.path}: {error}") from error
        drawn, (height, width) = self.source.read_mask(record, image.size), self.frame.fit(*image.size)
        mask = None
        if drawn is not None:
            mask = self.frame.cut(np.asarray(drawn.resize((width, height), Image.Resampling.NEAREST))) > 0
        if content is not None:
            pixels, mask = fill_outside(pixels, content), None if mask is None else mask & content
        return DecodedImage(pixels, mask, (height, width), content)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def images(self) -> Tensor:
        """The decoded images (N, C, H, W), where they are kept."""
        return torch.empty(0) if self.decoded is None else _select(self.decoded.images, self.rows)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Fetch a whole batch at once, as uint8 images.

        Raises:
            UserError: the file of decoded images is damaged.
        """
        index = torch.as_tensor(indices)
        size = torch.empty(len(index), 2, dtype=torch.long)
        mask = torch.zeros(len(index), *self.frame.size, dtype=torch.bool)
        content = torch.zeros_like(mask) if self.roi else mask
        if self.decoded is not None:
            place = index if self.rows is None else self.rows[index]
            if self.file is not None and self.decoded.damaged(place.tolist()):
                raise damage(self.file)
            image, size = _select(self.decoded.images, place), _select(self.decoded.sizes, place)
            mask = _select(self.decoded.masks, place) if len(self.decoded.masks) else mask
            content = _select(self.contents, place) if self.roi else content
        else:
            read = [self.read(self.records[i]) for i in indices]
            image = torch.stack([torch.from_numpy(one.image) for one in read])
            for row, one in enumerate(read):
                size[row] = torch.tensor(one.size)
                for target, found in ((mask, one.mask), (content, one.content)):
                    if found is not None:
                        target[row] = torch.from_numpy(found)
        batch = Batch(image=image, label=self.labels[index], mask=mask, index=index, category=self.category[index])
        batch = Batch(**batch, content=content) if self.roi else batch
        return Batch(**batch, size=size) if self.frame.keep_shape else batch

    def _decode(self) -> None:
        """Read every record once: fill the cache and, with `skip`, drop the records that cannot be read."""
        count, masked = len(self.records), any(record.mask for record in self.records)
        shape = (self.channels, *self.frame.size)
        if self.cache and self.file is not None:
            self.decoded, messages = open_or_write(self.file, count, shape, masked, self._fill)
        else:
            self.decoded = Decoded(count, shape, masked) if self.cache else None
            self.contents = torch.zeros(count if self.cache and self.roi else 0, *self.frame.size, dtype=torch.bool)
            messages = self._fill(self.decoded)
        self.skipped = [message for message in messages if message]
        if self.skipped:
            if not self.skip:
                raise UserError(self.skipped[0])
            self.rows = torch.tensor([i for i, message in enumerate(messages) if message is None], dtype=torch.long)
            self.records = [self.records[i] for i in self.rows.tolist()]

    def _fill(self, decoded: Decoded | None) -> list[str | None]:
        """Decode all records on all cores. -> for each why it could not be read, or None."""

        def read(i: int) -> str | None:
            try:
                one = self.read(self.records[i])
            except UserError as error:
                if not self.skip:
                    raise
                return str(error)
            if decoded is not None:
                decoded.images[i], decoded.sizes[i] = torch.from_numpy(one.image), torch.tensor(one.size)
                for target, found in ((decoded.masks, one.mask), (self.contents, one.content)):
                    if found is not None:
                        target[i] = torch.from_numpy(found)
            return None

        count = len(self.records)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes and resizes without the GIL
            done = pool.map(read, range(count))
            return list(track(done, "reading images", count, transient=True, disable=count < PROGRESS_FROM))


def _select(rows: Tensor, index: Tensor | None) -> Tensor:
    return rows if index is None else rows.index_select(0, index)  # many times as fast as rows[index]
