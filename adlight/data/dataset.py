"""The images of a split, decoded once and fetched as batches of uint8."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from adlight.data.decoded import Decoded, DecodedImage, damage, open_or_write, select_rows
from adlight.data.frames import Frame
from adlight.data.image_files import UnreadableImage
from adlight.data.images import to_input_array
from adlight.data.roi import RegionOfInterest
from adlight.data.source import Source
from adlight.progress import track
from adlight.types import Batch, Record, UserError

R = TypeVar("R")
T = TypeVar("T")
PROGRESS_FROM = 500  # smallest number of images for a progress bar


class CachedImageDataset(Dataset):
    """The images of a split at one size, fetched as whole batches.

    With `cache`, all images are decoded once, on all cores, into (N, C, H, W) uint8. Without it, they are decoded
    whenever they are fetched.

    Args:
        source: reads the `records`.
        records: the images.
        categories: names in the order of `Batch["category"]`.
        frame: frame into which images and masks are brought.
        channels: 1 or 3.
        cache: whether to keep the decoded images.
        file: file for the decoded images, see `name_file`; None keeps them in memory.
        skip: whether to leave out unreadable images and keep their messages in `skipped`.
        roi: the region of interest; None for whole images.

    Raises:
        UserError: an image is unreadable, a mask's size differs from its image's, or the file cannot be written.
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
        skip: bool = False,
        roi: RegionOfInterest | None = None,
    ) -> None:
        self.source, self.records, self.roi = source, list(records), roi
        self.frame, self.channels, self.cache, self.file = frame, channels, cache, file
        self.masked = any(record.mask for record in records)
        self.skip, self.skipped = skip, list[str]()
        self.decoded: Decoded | None = None
        self.rows: Tensor | None = None  # index of each record into `decoded`, if some are left out
        if cache or skip:
            self._decode_all()
        position = {name: i for i, name in enumerate(categories)}
        self.labels = torch.tensor([record.label for record in self.records])
        self.category = torch.tensor([position[record.category] for record in self.records])

    def read(self, record: Record) -> DecodedImage:
        """Decode one record."""
        try:
            image, content = self.source.read(record), None
            if self.roi is not None:
                image, content = self.roi.apply(image, self.channels, self.frame, record.path, record.category)
            pixels = to_input_array(image, self.channels, self.frame, content)
        except UnreadableImage:
            raise
        except Exception as error:  # decoders raise many types of errors; the message names the file
            raise UserError(f"cannot read image {record.path}: {error}") from error
        drawn, (height, width) = self.source.read_mask(record, image.size), self.frame.fit(*image.size)
        mask = None
        if drawn is not None:
            mask = self.frame.cut(np.asarray(drawn.resize((width, height), Image.Resampling.NEAREST))) > 0
            mask = mask if content is None else mask & content
        return DecodedImage(pixels, mask, (height, width), content)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def images(self) -> Tensor:
        """The decoded images (N, C, H, W) uint8; empty without `cache`."""
        if self.decoded is None:
            return torch.empty(0)
        return self.decoded.images if self.rows is None else self.decoded.images[self.rows]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Fetch a batch of uint8 images; raise a UserError if the file of decoded images is damaged."""
        index = torch.as_tensor(indices)
        if self.decoded is None:
            decoded, rows = self._allocate(len(index)), torch.arange(len(index))
            for row, i in enumerate(indices):
                decoded.put(row, self.read(self.records[i]))
        else:
            decoded, rows = self.decoded, index if self.rows is None else self.rows[index]
            if self.file is not None and decoded.damaged(rows.tolist()):
                raise damage(self.file)
        mask = torch.zeros(len(index), *self.frame.size, dtype=torch.bool)
        batch = Batch(
            image=select_rows(decoded.images, rows),
            label=self.labels[index],
            mask=select_rows(decoded.masks, rows) if self.masked else mask,
            index=index,
            category=self.category[index],
        )
        if self.roi:
            batch["content"] = select_rows(decoded.contents, rows)
        if self.frame.keep_shape:
            batch["size"] = decoded.sizes.index_select(0, rows)
        return batch

    def _allocate(self, count: int) -> Decoded:
        return Decoded(count, (self.channels, *self.frame.size), self.masked, selected=self.roi is not None)

    def _decode_all(self) -> None:
        """Read all records: fill the cache and, with `skip`, drop unreadable records."""
        if self.cache and self.file is not None:
            shape = (self.channels, *self.frame.size)
            self.decoded, messages = open_or_write(self.file, len(self.records), shape, self.masked, self._fill)
        else:
            self.decoded = self._allocate(len(self.records)) if self.cache else None
            messages = self._fill(self.decoded)
        self.skipped = [message for message in messages if message]
        if self.skipped:
            if not self.skip:
                raise UserError(self.skipped[0])
            self.rows = torch.tensor([i for i, message in enumerate(messages) if message is None], dtype=torch.long)
            self.records = [self.records[i] for i in self.rows.tolist()]

    def _fill(self, decoded: Decoded | None) -> list[str | None]:
        """Decode all records. -> for each record, the reason why it is unreadable, or None."""

        def read(i: int) -> str | None:
            try:
                image = self.read(self.records[i])
            except UserError as error:
                if not self.skip:
                    raise
                return str(error)
            if decoded is not None:
                decoded.put(i, image)
            return None

        return list(read_all(read, range(len(self.records))))


def read_all(read: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Call `read` for all items on all cores, in order, with a progress bar if there are many."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the GIL
        done = pool.map(read, items)
        yield from track(done, "reading images", len(items), PROGRESS_FROM)
