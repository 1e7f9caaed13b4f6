"""What detectors in feature space fit without epochs, and the folds of their held-out images."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from adlight.detection.whitening import k_means
from adlight.features.cache import Images
from adlight.features.predictor import Predictor, TrainingCells, channel_statistics, image_means


class Fitted(NamedTuple):
    """Results of fitting to the training images, besides the predictors."""

    cells: TrainingCells
    centers: Tensor  # (K, C), centers of the image clusters


def fit_cells(features: Tensor, predictors: Iterable[Predictor], clusters: int, device: torch.device) -> Fitted:
    """Compute channel statistics and image clusters, and fit the predictors.

    Args:
        features: (N, h, w, C) float16, features of the training images.
        predictors: the predictors to fit.
        clusters: number of image clusters, at most.
        device: where to compute.
    """
    mean, std = (statistic.to(device) for statistic in channel_statistics(features))
    cells = TrainingCells(features, mean, std)
    centers = k_means(torch.cat([image_means(batch) for batch in cells.batches()]), clusters)
    for predictor in predictors:
        predictor.fit(cells)
    return Fitted(cells, centers)


def assign_folds(images: Images, count: int) -> tuple[Tensor, Tensor]:
    """Assign held-out images to folds; a normal image and the defective copies that follow it share a fold.

    Args:
        images: N normal images and defective copies.
        count: number of folds, at most.

    Returns:
        The indices of the normal images (n,), and the fold of each image (N,).
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
    return normal, number % min(count, len(number.unique()))
