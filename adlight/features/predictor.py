"""Predictors of the cells of normal images, whose residuals reveal defects."""

from collections.abc import Iterable, Sequence

import torch
from torch import Generator, Tensor, nn

from adlight.detection.crossfitting import advise_folds, count_smallest_fit
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
        """Check that the number of training images suffices.

        Raises:
            UserError: there are too few.
        """

    def fit(self, cells: TrainingCells) -> None:
        """Fit to the training images."""

    def forward(self, cells: Tensor) -> Tensor:
        """Predict cells. (B, h, w, C) -> (B, h, w, C)."""
        raise NotImplementedError

    def residual(self, cells: Tensor, own: Tensor | None = None) -> Tensor:
        """Subtract the prediction from cells. (B, h, w, C) -> (B, h, w, C).

        Args:
            cells: cells of B images.
            own: (B,), indices of the images if they are training images: no image is predicted from itself.
        """
        return cells - self(cells)

    def loss(self, cells: Tensor, rng: Generator) -> Tensor:
        """Compute the mean squared residual. (B, h, w, C) -> scalar.

        Args:
            cells: cells of training images.
            rng: the only source of randomness.
        """
        return mean_square(self(cells), cells)

    def image_score(self, cells: Tensor, score: Tensor) -> Tensor | None:
        """Compute image scores (B,) from cells (B, h, w, C) and cell scores (B, h, w); None leaves it to the scorer."""
        return None

    def matrices(self) -> list[nn.Parameter]:
        """List the weights for an optimizer of matrices (Muon)."""
        return []

    def summary(self) -> str:
        """Describe the trained or fitted predictor in a few words."""
        return type(self).__name__


def choose(predictors: Iterable[str], members: Sequence[str] | None) -> list[str]:
    """Return the names of the predictors to use: `members`, or all if `members` is None.

    Raises:
        UserError: a name is unknown, or no name is given.
    """
    known = list(predictors)
    for name in (known if members is None else members) or [""]:
        if name not in known:
            raise UserError(f"members: {unknown_name('predictor', name, known)}")
    return known if members is None else list(members)


def check_predictors(predictors: Iterable[Predictor], count: int, folds: int) -> None:
    """Check that there are enough training images to fit predictors, also without the images of any one fold.

    Args:
        predictors: the predictors.
        count: number of training images.
        folds: number of folds; less than 2 if they are not cross-fitted.

    Raises:
        UserError: there are too few.
    """
    for predictor in predictors:
        predictor.check(count)
        if folds > 1:
            with advise_folds(folds):
                predictor.check(count_smallest_fit(count, folds))


def mean_square(predicted: Tensor, cells: Tensor, hard: float = 0.0) -> Tensor:
    """Compute the mean squared error, ignoring padding. -> scalar.

    Args:
        predicted: (B, h, w, C).
        cells: (B, h, w, C), the targets.
        hard: fraction of the cells, those with the smallest errors, whose gradients are scaled by 0.1 (Dinomaly's hard
            mining).
    """
    inside = in_image(cells)
    error = (cells - predicted).where(inside[..., None], 0).square().mean(-1)  # (B, h, w)
    if hard:
        easy = error < error[inside].detach().quantile(hard)
        error = torch.where(easy, 0.1 * error + 0.9 * error.detach(), error)
    return error.sum() / inside.sum()
