"""Predictors of the cells of normal images, whose residuals reveal defects."""

from collections.abc import Iterable, Sequence

import torch
from torch import Generator, Tensor, nn

from adlight.detection.crossfitting import check_folds
from adlight.features.cells import TrainingCells, in_image
from adlight.types import UserError, unknown_name


class Predictor(nn.Module):
    """Predicts the cells of normal images.

    Attributes:
        trained: whether the predictor is trained on `loss` by gradient; otherwise it is only fitted.
        whitened: whether residuals are measured relative to their covariance on normal images, not by their length.
        takes_copies: whether the predictor uses rotated copies of training images.
    """

    trained = False
    whitened = True
    takes_copies = False

    def check(self, count: int) -> None:
        """Raise a UserError if `count` training images are too few."""

    def fit(self, cells: TrainingCells) -> None:
        """Fit to the training images."""

    def forward(self, cells: Tensor) -> Tensor:
        """Predict cells. (B, h, w, C) -> (B, h, w, C)."""
        raise NotImplementedError

    def residual(self, cells: Tensor, own: Tensor | None = None) -> Tensor:
        """Subtract the prediction from cells. (B, h, w, C) -> (B, h, w, C).

        `own` (B,) are the indices of training images, which are not predicted from themselves; None for other images.
        """
        return cells - self(cells)

    def loss(self, cells: Tensor, rng: Generator) -> Tensor:
        """Compute the mean squared residual of training images; `rng` makes all draws. (B, h, w, C) -> scalar."""
        return mean_square(self(cells), cells)

    def image_score(self, cells: Tensor, score: Tensor) -> Tensor | None:
        """Compute image scores (B,) from cells (B, h, w, C) and cell scores (B, h, w); None leaves it to the scorer."""
        return None

    def count_angles(self) -> int:
        """Count the angles at which the most often rotated training image is stored; 1 without rotated copies."""
        return 1

    def matrices(self) -> list[nn.Parameter]:
        """List the weights for an optimizer of matrices (Muon)."""
        return []

    def summary(self) -> str:
        """Describe the trained or fitted predictor in a few words."""
        return type(self).__name__


def choose(predictors: Iterable[str], members: Sequence[str] | None) -> list[str]:
    """Return the names of the predictors to use: `members`, or all if `members` is None.

    An unknown name, or no name, is a UserError.
    """
    known = list(predictors)
    chosen = known if members is None else list(members)
    for name in chosen or [""]:
        if name not in known:
            raise UserError(f"members: {unknown_name('predictor', name, known)}")
    return chosen


def check_predictors(predictors: Iterable[Predictor], count: int, folds: int) -> None:
    """Raise a UserError if `count` training images are too few for the predictors.

    With 2 or more `folds`, the images outside any one fold must suffice too.
    """
    for predictor in predictors:
        predictor.check(count)
        if folds > 1:
            check_folds(predictor.check, count, folds)


def mean_square(predicted: Tensor, cells: Tensor, hard: float = 0.0) -> Tensor:
    """Compute the mean squared error, ignoring padding. (B, h, w, C), (B, h, w, C) -> scalar.

    The gradients of the fraction `hard` of the cells, those with the smallest errors, are scaled by 0.1 (Dinomaly's
    hard mining).
    """
    inside = in_image(cells)
    error = (cells - predicted).where(inside[..., None], 0).square().mean(-1)  # (B, h, w)
    if hard:
        easy = error < error[inside].detach().quantile(hard)
        error = torch.where(easy, 0.1 * error + 0.9 * error.detach(), error)
    return error.sum() / inside.sum()
