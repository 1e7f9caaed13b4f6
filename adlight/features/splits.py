"""Features of a data module's splits, and the folds of its held-out images."""

from typing import Any

import torch
from torch import Tensor

from adlight.data.datamodule import AnomalyDataModule
from adlight.data.pseudo_dataset import Images
from adlight.features.cache import FeatureCache

STAGES = {"train": "fit", "val": "validate", "test": "test"}


class SplitFeatures:
    """Computes or loads the features of a split when they are first asked for, and keeps them.

    Args:
        cache: makes them.
    """

    def __init__(self, cache: FeatureCache) -> None:
        self.cache, self.kept = cache, dict[str, tuple[AnomalyDataModule, Tensor]]()

    def features(self, data: AnomalyDataModule, split: str, device: torch.device) -> Tensor:
        """Compute or load a split's features in the order of `Batch["index"]`. -> (N, h, w, C) float16 on the CPU."""
        if split not in self.kept or self.kept[split][0] is not data:
            self.kept[split] = data, self.cache(images_of(data, split), device)
        return self.kept[split][1]


def images_of(data: AnomalyDataModule, split: str) -> Images:
    """Give a split's images before augmentation: `train`, `val` (with pseudo-anomalies) or `test`."""
    with torch.inference_mode(False):  # a validation may ask first, and threads fill the memory that this allocates
        data.setup(STAGES[split])  # does nothing where it is done
    loader: Any = getattr(data, f"{split}_dataloader")()
    return loader.dataset


def folds_of(images: Images, count: int) -> tuple[Tensor, Tensor]:
    """Part held-out images into folds, a normal image and the defective copies that stand behind it into one.

    Returns:
        The indices of the normal images, (n,), and the fold of each image, (N,), below `count` and n.
    """
    labels, owners = list[Tensor](), list[Tensor]()
    for i in range(len(images)):
        batch = images.__getitems__([i])
        labels.append(batch["label"])
        owners += [batch["tile"][:, 0]] if "tile" in batch else []
    normal = (torch.cat(labels) == 0).nonzero()[:, 0]
    number = torch.arange(len(images)) * len(normal) // len(images)
    if owners:
        number = torch.cat(owners)  # all tiles of an image in one fold
    return normal, number % min(count, len(number.unique()))
