"""Cross-fitting: training images are scored by models that have not seen them, so that they can serve for calibration.

Each of k folds is scored by a model fitted to the other folds; the detector itself is fitted to all images. This takes
k additional fits to 1 - 1 / k of the images, and each image is scored once. The fold models have seen fewer images, so
their scores, and therefore the thresholds, tend to be higher and false alarms rarer. The guarantee is weaker than with
held-out images, because the detector's scores are compared with scores of other models. If a new image is compared with
the fold models themselves, cross-conformal prediction (Vovk 2015) and CV+ (Barber, Candes, Ramdas & Tibshirani 2021)
bound the false alarm rate by 2 alpha plus a term that vanishes with n, and observe alpha in practice. For a model
fitted to all images, such a bound holds only if leaving out a fold hardly changes its scores (ibid., section 7).
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from adlight.data.decoded import to_unit_range
from adlight.data.pseudo_dataset import Images
from adlight.data.splits import Split, TileDataset
from adlight.types import Batch, UserError


def split_folds(number: Tensor, folds: int, rank: int = 0, world_size: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """Split items with image numbers (N,) into at most `folds` folds, which the processes take in turn.

    A fold takes every `folds`-th image, because images are sorted by category.

    Yields:
        Indices to fit to and indices to score, per fold; the first fold has the fewest images to fit to.
    """
    index = torch.arange(len(number))
    for fold in range(rank, min(folds, len(number.unique())), world_size):
        yield index[number % folds != fold], index[number % folds == fold]


def assign_folds(images: Images, folds: int) -> tuple[Tensor, Tensor]:
    """Assign held-out images to at most `folds` folds; a normal image shares its fold with its defective copies.

    Returns:
        Indices of the normal images (n,), and the fold of each image (N,).
    """
    labels, tiled_images = list[Tensor](), list[Tensor]()
    for i in range(len(images)):
        batch = images.__getitems__([i])
        labels.append(batch["label"])
        if "tile" in batch:
            tiled_images.append(batch["tile"][:, 0])
    normal = (torch.cat(labels) == 0).nonzero()[:, 0]
    number = torch.arange(len(images)) * len(normal) // len(images)
    if tiled_images:
        number = torch.cat(tiled_images)  # all tiles of an image share a fold
    return normal, number % min(folds, len(number.unique()))


def image_numbers_of(split: Split) -> Tensor:
    """Return the image number of each item of a split, whose items may be tiles. -> (N,)."""
    return split.places[:, 0] if isinstance(split, TileDataset) else torch.arange(len(split))


def check_folds(check: Callable[[int], None], count: int, folds: int) -> None:
    """Raise a UserError if, by `check`, the images outside a fold of `count` training images are too few to fit to."""
    fewest = count - math.ceil(count / folds)  # outside the first fold
    try:
        check(fewest)
    except UserError as error:
        raise UserError(f"a model for {folds - 1} of {folds} folds: {error}, or set calibration.folds=0") from error


def fetch(dataset: Images, index: Tensor, device: torch.device) -> Batch:
    """Fetch a batch as a trainer passes it to a module: in [0, 1], on the module's device."""
    batch: Any = dict(dataset.__getitems__(index.tolist()))
    batch = {name: value.to(device) for name, value in batch.items()}
    batch["image"] = to_unit_range(batch["image"])
    return batch
