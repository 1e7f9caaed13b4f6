"""Held-out normal images, with pseudo-anomalies beside them."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from adlight.data.pseudo_anomalies import paste_defect, paste_within
from adlight.rng import derive_seed
from adlight.types import Batch


class Images(Protocol):
    """A data set that yields batches of uint8 images, without augmentation."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> Batch: ...


class CachedImages(Protocol):
    """`Images` whose items may get defects.

    Attributes:
        cache: whether they are kept in memory.
    """

    cache: bool

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> Batch: ...


class PseudoAnomalyDataset(Dataset):
    """Each normal image plain, then its copies with a defect each: labelled data without any real anomaly.

    Item (1 + copies) i is image i of `dataset`, its copies follow, so that any part of them has both labels.
    A defect depends on the seed, on i and on the copy's number alone; `pseudo_anomalies.py` draws it.
    """

    def __init__(self, dataset: CachedImages, seed: int, copies: int = 1) -> None:
        self.dataset, self.seed, self.copies = dataset, seed, copies
        self.pasted: dict[int, tuple[Tensor, Tensor]] = {}

    def paste(self, item: int, image: Tensor, content: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Paste the item's own defect. (C, H, W) uint8 -> a copy with the defect, and its mask (H, W) bool."""
        if item not in self.pasted:
            i, number = divmod(item, 1 + self.copies)
            rng = Generator().manual_seed(derive_seed("defect", self.seed + number - 1, i))
            result = paste_defect(image, rng) if content is None else paste_within(image, content, rng)
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
                image[:], mask[:] = self.paste(item, image, batch["content"][row] if "content" in batch else None)
        return batch
