"""Cross-fitting: training images are scored by models that have not seen them, so that they can calibrate too.

Each of k folds is scored by a model that is fitted to the images of the others; the detector itself is fitted to all.
It costs k further fits to 1 - 1 / k of the images, and scoring each once. The models of the folds know fewer images,
so their scores are higher if anything, thresholds with them, and false alarms fewer. The promise is weaker than that of
held-out images: scores of the detector are compared with those of other models. Of a new image that is compared with
the models of the folds themselves, cross-conformal prediction (Vovk 2015) and CV+ (Barber, Candes, Ramdas & Tibshirani
2021) bound the rate by 2 alpha and a term that vanishes with n, and both find alpha in practice; for one model fitted
to all images there is such a bound only where leaving out a fold hardly changes its scores (ibid., section 7).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from adlight.data.loading import Split
from adlight.data.pseudo_dataset import Images
from adlight.data.tile_dataset import TileDataset
from adlight.types import Batch, UserError


def split_folds(
    images: int | Tensor, folds: int, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """Part images into folds, every `folds`-th image into one, as images of a category come together.

    Args:
        images: how many there are; or of tiles, the image of each (N,).
        folds: how many there are.
        rank: of this process.
        world_size: of processes, which take folds in turn.

    Yields:
        The images to fit to, and those to score, of each fold that is this process's; that with the fewest images to
        fit to is the first.
    """
    number = torch.arange(images) if isinstance(images, int) else images
    index = torch.arange(len(number))
    for fold in range(rank, min(folds, len(number.unique())), world_size):
        yield index[number % folds != fold], index[number % folds == fold]


def owners(split: Split) -> Tensor:
    """Give the image of each item of a split, which may be tiles. -> (N,)."""
    return split.places[:, 0] if isinstance(split, TileDataset) else torch.arange(len(split))


def fewest(count: int, folds: int) -> int:
    """Count the images that the model of the first fold is fitted to, of which no other has fewer."""
    return count - -(-count // folds)


@contextmanager
def advise_folds(folds: int) -> Iterator[None]:
    """Add what to do to the message of a UserError: the images of the other folds are too few to fit to."""
    try:
        yield
    except UserError as error:
        raise UserError(f"a model of {folds - 1} of {folds} folds: {error}, or set calibration.folds=0") from error


def fetch(dataset: Images, index: Tensor, device: torch.device) -> Batch:
    """Fetch a batch of images as a trainer brings it to a module: in [0, 1], on its device."""
    batch: Any = dict(dataset.__getitems__(index.tolist()))
    batch = {name: value.to(device) for name, value in batch.items()}
    batch["image"] = batch["image"].float().div_(255)
    return batch
