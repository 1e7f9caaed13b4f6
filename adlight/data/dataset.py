"""Images decoded once: a split as one uint8 tensor in memory."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch.utils.data import Dataset

from adlight.data.frames import Frame
from adlight.data.headers import UnreadableImage
from adlight.data.images import fill_outside, to_input_array
from adlight.data.roi import RegionOfInterest
from adlight.data.source import Source
from adlight.types import Batch, Record, UserError

PROGRESS_FROM = 500  # images; a bar over fewer would be gone before anyone could read it


class Decoded(NamedTuple):
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
        cache: keep the decoded images in memory.
        on_bad_image: `error`, or `skip`: leave out an unreadable image and keep its message in `skipped`.
        roi: what of the images counts; None: all.

    Raises:
        UserError: an unreadable image, or a mask whose size differs from its image's.
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
        on_bad_image: str = "error",
        roi: RegionOfInterest | None = None,
    ) -> None:
        self.source, self.records, self.roi = source, list(records), roi
        self.frame, self.channels, self.cache = frame, channels, cache
        self.skipped: list[str] = []
        self.images = self.masks = self.sizes = self.contents = torch.empty(0)
        if cache or on_bad_image == "skip":
            self._decode(skip=on_bad_image == "skip")
        position = {name: i for i, name in enumerate(categories)}
        self.labels = torch.tensor([record.label for record in self.records])
        self.category = torch.tensor([position[record.category] for record in self.records])

    def read(self, record: Record) -> Decoded:
        """Decode one record."""
        try:
            image, content = self.source.read(record), None
            if self.roi is not None:
                image, content = self.roi.apply(image, self.channels, self.frame, record.path, record.category)
            pixels = to_input_array(image, self.channels, self.frame).copy()
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
        return Decoded(pixels, mask, (height, width), content)

    def __len__(self) -> int:
        return len(self.records)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Fetch a whole batch at once, as uint8 images."""
        index = torch.as_tensor(indices)
        size = self.sizes.index_select(0, index) if self.cache else torch.empty(len(index), 2, dtype=torch.long)
        mask, content = torch.zeros(2, len(index), *self.frame.size, dtype=torch.bool)
        if self.cache:
            image = self.images.index_select(0, index)  # many times as fast as images[index]
            mask = self.masks.index_select(0, index) if len(self.masks) else mask
            content = self.contents.index_select(0, index) if self.roi else content
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

    def _decode(self, skip: bool) -> None:
        """Read every record once: fill the cache and, with `skip`, drop the records that cannot be read."""
        count = len(self.records)
        if self.cache:
            masked = any(record.mask for record in self.records)
            self.images = torch.empty(count, self.channels, *self.frame.size, dtype=torch.uint8)
            self.sizes = torch.empty(count, 2, dtype=torch.long)
            self.masks = torch.zeros(count if masked else 0, *self.frame.size, dtype=torch.bool)
            self.contents = torch.zeros(count if self.roi else 0, *self.frame.size, dtype=torch.bool)

        def read(i: int) -> str | None:
            try:
                one = self.read(self.records[i])
            except UserError as error:
                if not skip:
                    raise
                return str(error)
            if self.cache:
                self.images[i], self.sizes[i] = torch.from_numpy(one.image), torch.tensor(one.size)
                for target, found in ((self.masks, one.mask), (self.contents, one.content)):
                    if found is not None:
                        target[i] = torch.from_numpy(found)
            return None

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes and resizes without the GIL
            done = pool.map(read, range(count))
            messages = list(track(done, "reading images", count, transient=True, disable=count < PROGRESS_FROM))
        self.skipped = [message for message in messages if message]
        if self.skipped:
            kept = [i for i, message in enumerate(messages) if message is None]
            self.records = [self.records[i] for i in kept]
            if self.cache:
                self.images, self.sizes = self.images[kept], self.sizes[kept]
            self.masks = self.masks[kept] if len(self.masks) else self.masks
            self.contents = self.contents[kept] if len(self.contents) else self.contents
