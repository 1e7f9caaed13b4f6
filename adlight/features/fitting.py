"""What is fitted to features without epochs, and how cells become scores: of a detector, and of those of its folds."""

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from adlight.detection.crossfitting import advise_folds, fetch, fewest, owners, split_folds
from adlight.detection.inference import exactly
from adlight.detection.whitening import k_means
from adlight.features.predictor import Copies, Predictor, TrainingCells, channel_statistics, image_means, standardize
from adlight.features.scorer import score_cells
from adlight.types import Batch, Scores

if TYPE_CHECKING:
    from adlight.features.module import FeatureModule


class Fitted(NamedTuple):
    """What fitting to the training images gives beside the predictors."""

    cells: TrainingCells
    centers: Tensor  # (K, C) of clusters of images


def fit_cells(
    features: Tensor,
    predictors: Iterable[Predictor],
    clusters: int,
    device: torch.device,
    rotate: Callable[[TrainingCells, Tensor], Copies | None] = lambda cells, centers: None,
) -> Fitted:
    """Find statistics of channels and clusters of images, and fit the predictors.

    Args:
        features: (N, h, w, C) float16 of the training images.
        predictors: those that are fitted.
        clusters: how many.
        device: where to compute.
        rotate: makes rotated copies from the cells and the clusters' centers (K, C).
    """
    mean, std = (one.to(device) for one in channel_statistics(features))
    cells = TrainingCells(features, mean, std)
    centers = k_means(torch.cat([image_means(part) for part in cells.batches()]), clusters)
    cells.copies = rotate(cells, centers)
    for predictor in predictors:
        predictor.fit(cells)
    return Fitted(cells, centers)


def check_members(module: "FeatureModule", folds: int) -> None:
    """Refuse training images that are too few to fit to, by a module's predictors or by those of its folds.

    Raises:
        UserError: they are.
    """
    count, crossed = len(module.datamodule.datasets["train"]), folds > 1 and not module.automatic_optimization
    for one in module.members.values():
        one.check(count)
        if crossed:
            with advise_folds(folds):
                one.check(fewest(count, folds))


def held_out_cells(module: "FeatureModule", mean: Tensor, std: Tensor) -> list[Tensor]:
    """Standardize the cells of a module's held-out normal images (n, h, w, C), one part per fold of them."""
    cells, fold = TrainingCells(module.features("val"), mean, std), module.fold_of[module.normal]
    return [cells[module.normal[fold == one]] for one in module.fold_of.unique()]


def cross_fit(module: "FeatureModule", folds: int) -> Iterator[tuple[Batch, Scores]]:
    """Score a module's training images, fold by fold, by what is fitted to the others as the module itself was.

    The held-out images, which no fold contains, measure the residuals of all.
    """
    features, trainer = module.features("train"), module.trainer
    check_members(module, folds)
    for rest, fold in split_folds(
        owners(module.datamodule.datasets["train"]), folds, trainer.global_rank, trainer.world_size
    ):
        predictors, residual_map = deepcopy((module.members, module.residual_map))
        with exactly(module.device):
            copies = None if module.copies is None else module.copies.of_images(rest)
            cells, centers = fit_cells(
                features[rest], predictors.values(), module.clusters, module.device, lambda *_, own=copies: own
            )
            held_out, training = held_out_cells(module, cells.mean, cells.std), cells.sample(module.training_residuals)
            residual_map.folds = []
            residual_map.fit(predictors, centers, held_out, training)
        for part in fold.split(module.datamodule.eval_batch_size):
            batch = fetch(module.datamodule.datasets["train"], part, module.device)
            with exactly(module.device):
                x = standardize(features[part].to(module.device), cells.mean, cells.std)
                score, pixel, *_ = score_cells(x, predictors, residual_map, module.scorer, batch)
            yield batch, Scores(image=score, pixel=pixel, reconstruction=batch["image"])
