"""Images decoded once: a split as one uint8 tensor in memory, and its held-out normals with pseudo-anomalies."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Generator, Tensor
from torch.utils.data import Dataset

from adlight.data.decoded import Decoded, damage, open_or_write
from adlight.data.frames import Frame
from adlight.data.headers import UnreadableImage
from adlight.data.images import to_input_array
from adlight.data.pseudo_anomalies import paste_defect
from adlight.data.source import Source
from adlight.rng import derive_seed
from adlight.types import Batch, Record, UserError

PROGRESS_FROM = 500  # images; a bar over fewer would be gone before anyone could read it


class CachedImageDataset(Dataset):
    """The images of a split at one size, fetched as whole batches.

    With `cache` all images are decoded once, on all cores, into (N, C, H, W) uint8; later epochs read no file.
    With `file` they lie there, memory-mapped, for all processes and later runs. Without `cache` they are decoded at
    every fetch.

    Args:
        source: reads the records.
        records: what to read.
        categories: names in the order of `Batch["category"]`.
        frame: into which images and masks are brought.
        channels: 1 or 3.
        cache: keep the decoded images.
        file: of `name_file`, in which they are kept; None: in memory.
        on_bad_image: `error`, or `skip`: leave out an unreadable image and keep its message in `skipped`.

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
    ) -> None:
        self.source, self.records = source, list(records)
        self.frame, self.channels, self.cache, self.file = frame, channels, cache, file
        self.skip, self.skipped = on_bad_image == "skip", list[str]()
        self.decoded: Decoded | None = None
        self.rows: Tensor | None = None  # of the records in `decoded`, where some are left out
        if cache or self.skip:
            self._decode()
        position = {name: i for i, name in enumerate(categories)}
        self.labels = torch.tensor([record.label for record in self.records])
        self.category = torch.tensor([position[record.category] for record in self.records])

    def read(self, record: Record) -> tuple[np.ndarray, np.ndarray | None, tuple[int, int]]:
        """Decode one record: (C, H, W) uint8, its mask (H, W) bool or None, its height and width in the frame."""
        try:
            image = self.source.read(record)
            pixels = to_input_array(image, self.channels, self.frame).copy()
        except UnreadableImage:
            raise
        except Exception as error:  # whatever a decoder raises, the user needs the file's name
            raise UserError(f"cannot read image {record.path}: {error}") from error
        mask, (height, width) = self.source.read_mask(record, image.size), self.frame.fit(*image.size)
        if mask is None:
            return pixels, None, (height, width)
        mask = mask.resize((width, height), Image.Resampling.NEAREST)
        return pixels, self.frame.cut(np.asarray(mask)) > 0, (height, width)

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
        if self.decoded is not None:
            place = index if self.rows is None else self.rows[index]
            if self.file is not None and self.decoded.damaged(place.tolist()):
                raise damage(self.file)
            image, size = _select(self.decoded.images, place), _select(self.decoded.sizes, place)
            mask = _select(self.decoded.masks, place) if len(self.decoded.masks) else mask
        else:
            read = [self.read(self.records[i]) for i in indices]
            image = torch.stack([torch.from_numpy(pixels) for pixels, _, _ in read])
            for row, (_, found, own) in enumerate(read):
                size[row] = torch.tensor(own)
                if found is not None:
                    mask[row] = torch.from_numpy(found)
        batch = Batch(image=image, label=self.labels[index], mask=mask, index=index, category=self.category[index])
        return Batch(**batch, size=size) if self.frame.keep_shape else batch

    def _decode(self) -> None:
        """Read every record once: fill the cache and, with `skip`, drop the records that cannot be read."""
        count, masked = len(self.records), any(record.mask for record in self.records)
        shape = (self.channels, *self.frame.size)
        if self.cache and self.file is not None:
            self.decoded, messages = open_or_write(self.file, count, shape, masked, self._fill)
        else:
            self.decoded = Decoded(count, shape, masked) if self.cache else None
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
                image, mask, size = self.read(self.records[i])
            except UserError as error:
                if not self.skip:
                    raise
                return str(error)
            if decoded is not None:
                decoded.images[i], decoded.sizes[i] = torch.from_numpy(image), torch.tensor(size)
                if mask is not None:
                    decoded.masks[i] = torch.from_numpy(mask)
            return None

        count = len(self.records)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes and resizes without the GIL
            done = pool.map(read, range(count))
            return list(track(done, "reading images", count, transient=True, disable=count < PROGRESS_FROM))


def _select(rows: Tensor, index: Tensor | None) -> Tensor:
    return rows if index is None else rows.index_select(0, index)  # many times as fast as rows[index]


class PseudoAnomalyDataset(Dataset):
    """Each normal image plain, then its copies with a defect each: labelled data without any real anomaly.

    Item (1 + copies) i is image i of `dataset`, its copies follow, so that any part of them has both labels.
    A defect depends on the seed, on i and on the copy's number alone; `pseudo_anomalies.py` draws it.
    """

    def __init__(self, dataset: CachedImageDataset, seed: int, copies: int = 1) -> None:
        self.dataset, self.seed, self.copies = dataset, seed, copies
        self.pasted: dict[int, tuple[Tensor, Tensor]] = {}

    def paste(self, item: int, image: Tensor) -> tuple[Tensor, Tensor]:
        """Paste the item's own defect. (C, H, W) uint8 -> a copy with the defect, and its mask (H, W) bool."""
        if item not in self.pasted:
            i, number = divmod(item, 1 + self.copies)
            result = paste_defect(image, Generator().manual_seed(derive_seed("defect", self.seed + number - 1, i)))
            if not self.dataset.cache:
                return result
            self.pasted[item] = result
        return self.pasted[item]

    def __len__(self) -> int:
        return (1 + self.copies) * len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Fetch a whole batch at once, as uint8 images."""
        batch = self.dataset.__getitems__([item // (1 + self.copies) for item in indices])
        batch["index"] = torch.as_tensor(indices)
        batch["label"] = (batch["index"] % (1 + self.copies) > 0).long()
        for row, item in enumerate(indices):
            if batch["label"][row]:
                height, width = batch["size"][row].tolist() if "size" in batch else batch["mask"].shape[1:]
                image, mask = batch["image"][row, :, :height, :width], batch["mask"][row, :height, :width]
                image[:], mask[:] = self.paste(item, image)
        return batch
