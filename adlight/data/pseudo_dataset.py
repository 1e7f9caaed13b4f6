"""Held-out normal images and their pseudo-anomalous copies, for validation."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from adlight.data.pseudo_anomalies import paste_defect, paste_within
from adlight.data.pseudo_classes import change_class
from adlight.data.regions import randint
from adlight.data.splits import Split
from adlight.rng import derive_seed
from adlight.types import Batch


class Images(Protocol):
    """A data set that yields batches of uint8 images, without augmentation."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> Batch: ...


class PseudoAnomalyDataset(Dataset):
    """Each normal image, followed by its anomalous copies.

    Item (1 + copies) i is image i of `dataset`. A copy depends only on the seed, i and its number. It has a defect
    (`pseudo_anomalies.py`) or, if `kind` is `classes`, is changed as a whole (`pseudo_classes.py`), in part with the
    help of another image of `dataset`.
    """

    def __init__(self, dataset: Split, seed: int, copies: int = 1, kind: str = "defects") -> None:
        self.dataset, self.seed, self.copies, self.kind = dataset, seed, copies, kind
        self.pasted: dict[int, tuple[Tensor, Tensor]] = {}

    def paste(self, item: int, image: Tensor, content: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Make the pseudo-anomaly of an item. (C, H, W) uint8 -> the changed copy, and its mask (H, W) bool."""
        if item in self.pasted:
            return self.pasted[item]
        i, number = divmod(item, 1 + self.copies)
        rng = Generator().manual_seed(derive_seed("defect", self.seed + number - 1, i))
        if self.kind == "classes":
            result = self._change_class(i, image, content, rng)
        else:
            result = paste_defect(image, rng) if content is None else paste_within(image, content, rng)
        if self.dataset.cache:
            self.pasted[item] = result
        return result

    def _change_class(self, i: int, image: Tensor, content: Tensor | None, rng: Generator) -> tuple[Tensor, Tensor]:
        other = self.dataset.__getitems__([(i + 1 + randint(rng, max(1, len(self.dataset) - 1))) % len(self.dataset)])
        height, width = other["size"][0].tolist() if "size" in other else other["image"].shape[2:]
        made = change_class(image, other["image"][0, :, :height, :width], rng)
        if content is not None:
            made = made.where(content, image)
            made = (255 - image).where(content, image) if torch.equal(made, image) else made
        return made, (made != image).any(0)

    def __len__(self) -> int:
        return (1 + self.copies) * len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Fetch a batch of uint8 images."""
        batch = self.dataset.__getitems__([item // (1 + self.copies) for item in indices])
        batch["index"] = torch.as_tensor(indices)
        batch["label"] = (batch["index"] % (1 + self.copies) > 0).long()
        for row, item in enumerate(indices):
            if batch["label"][row]:
                height, width = batch["size"][row].tolist() if "size" in batch else batch["mask"].shape[1:]
                image, mask = batch["image"][row, :, :height, :width], batch["mask"][row, :height, :width]
                image[:], mask[:] = self.paste(item, image, batch["content"][row] if "content" in batch else None)
        return batch
