"""Decoded once: a split's images as one uint8 tensor in memory, and its held-out normals with pasted defects."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Generator, Tensor
from torch.utils.data import Dataset

from adlight.data.images import center_crop, to_input_array
from adlight.data.pseudo_anomalies import paste_defect
from adlight.data.source import Source
from adlight.rng import derive_seed
from adlight.types import Batch, Record, UserError


class CachedImageDataset(Dataset):
    """The images of a split at one size. `store[[3, 1]]`-style fetches give whole batches, not single samples.

    With `cache` all images are decoded once, by all cores, into (N, C, size, size) uint8; later epochs touch no file.
    Without it they are decoded at every fetch.

    Args:
        source: reads the records.
        records: what to read.
        categories: names in the order of `Batch["category"]`.
        image_size: side in pixels; images are resized to a square.
        resize: side to resize to instead, of which the centre of `image_size` is kept.
        channels: 1 or 3.
        cache: keep the decoded images in memory.
        on_bad_image: `error`, or `skip`: an unreadable image is left out and its message kept in `skipped`.

    Raises:
        UserError: an unreadable image, or a mask of another size than its image.
    """

    def __init__(
        self,
        source: Source,
        records: Sequence[Record],
        categories: Sequence[str],
        *,
        image_size: int,
        resize: int | None = None,
        channels: int = 3,
        cache: bool = True,
        on_bad_image: str = "error",
    ) -> None:
        self.source, self.records, self.categories = source, list(records), list(categories)
        self.image_size, self.resize, self.channels, self.cache = image_size, resize, channels, cache
        self.skipped: list[str] = []
        self.images = self.masks = torch.empty(0)
        if cache or on_bad_image == "skip":
            self.decode(skip=on_bad_image == "skip")
        place = {name: i for i, name in enumerate(categories)}
        self.labels = torch.tensor([record.label for record in self.records])
        self.category = torch.tensor([place[record.category] for record in self.records])

    def decode(self, skip: bool) -> None:
        """Read every record once: fills the cache and, with `skip`, drops the records that cannot be read."""
        size, count = self.image_size, len(self.records)
        if self.cache:
            masked = any(record.mask for record in self.records)
            self.images = torch.empty(count, self.channels, size, size, dtype=torch.uint8)
            self.masks = torch.zeros(count if masked else 0, size, size, dtype=torch.bool)

        def read(i: int) -> str | None:
            try:
                image, mask = self.read(self.records[i])
            except UserError as error:
                if not skip:
                    raise
                return str(error)
            if self.cache:
                self.images[i] = torch.from_numpy(image)
                if mask is not None:
                    self.masks[i] = torch.from_numpy(mask)
            return None

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes and resizes without the GIL
            messages = list(
                track(
                    pool.map(read, range(count)),
                    total=count,
                    description="reading images",
                    transient=True,
                    disable=count < 500,  # gone before anyone could read it
                )
            )
        self.skipped = [message for message in messages if message]
        if self.skipped:
            kept = [i for i, message in enumerate(messages) if message is None]
            self.records = [self.records[i] for i in kept]
            if self.cache:
                self.images = self.images[kept]
                self.masks = self.masks[kept] if len(self.masks) else self.masks

    def read(self, record: Record) -> tuple[np.ndarray, np.ndarray | None]:
        """Decode one record: (C, size, size) uint8, and (size, size) bool or None."""
        try:
            image = self.source.read(record)
            pixels = to_input_array(image, self.channels, self.image_size, self.resize)
        except UserError:
            raise
        except Exception as error:  # whatever a decoder throws, the user needs the file's name
            raise UserError(f"cannot read image {record.path}: {error}") from error
        mask = self.source.read_mask(record, image.size)
        if mask is None:
            return pixels.copy(), None
        side = self.resize or self.image_size
        small = np.asarray(mask.resize((side, side), Image.Resampling.NEAREST))
        return pixels.copy(), center_crop(small, self.image_size) > 0

    def __len__(self) -> int:
        return len(self.records)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Fetch a whole batch at once, as uint8 images."""
        index = torch.as_tensor(indices)
        if self.cache:
            image = self.images.index_select(0, index)  # many times as fast as images[index]
            mask = self.masks.index_select(0, index) if len(self.masks) else None
        else:
            pairs = [self.read(self.records[i]) for i in indices]
            image = torch.stack([torch.from_numpy(pixels) for pixels, _ in pairs])
            blank = np.zeros((self.image_size, self.image_size), dtype=bool)
            mask = torch.stack([torch.from_numpy(blank if found is None else found) for _, found in pairs])
        if mask is None:
            mask = torch.zeros(1, 1, 1, dtype=torch.bool).expand(len(index), self.image_size, self.image_size)
        return Batch(image=image, label=self.labels[index], mask=mask, index=index, category=self.category[index])


class PseudoAnomalyDataset(Dataset):
    """Each normal image of a store twice, plain and with a defect pasted on: labelled, without any real anomaly.

    Item 2i is image i of the store, item 2i + 1 its copy with a defect, so that any part of them has both labels.
    The defect depends on the seed and on i only; `data/defects.py` says what it looks like.
    """

    def __init__(self, store: CachedImageDataset, seed: int) -> None:
        self.store, self.seed = store, seed
        self.pasted: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return 2 * len(self.store)

    def paste(self, i: int, image: Tensor) -> tuple[Tensor, Tensor]:
        """Paste image i's own defect. (C, H, W) uint8 -> the same with a defect, and its mask (H, W) bool."""
        if i not in self.pasted:
            result = paste_defect(image, Generator().manual_seed(derive_seed("defect", self.seed, i)))
            if not self.store.cache:
                return result
            self.pasted[i] = result
        return self.pasted[i]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Fetch a whole batch at once, as uint8 images."""
        batch = self.store.__getitems__([item // 2 for item in indices])
        batch["index"] = torch.as_tensor(indices)
        batch["label"] = batch["index"] % 2
        batch["mask"] = batch["mask"].clone()
        for row, item in enumerate(indices):
            if item % 2:
                batch["image"][row], batch["mask"][row] = self.paste(item // 2, batch["image"][row])
        return batch
