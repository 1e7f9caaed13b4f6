"""Predictors of a normal image's cells, whose residuals show defects, and functions on cells.

Cells in padding or outside the region of interest are NaN, and so is everything computed from them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from adlight.types import Batch, UserError, unknown_name


class TrainingCells:
    """Features of the training images, standardized on access.

    Args:
        features: (N, h, w, C) float16, as cached.
        mean: (C,), channel means.
        std: (C,), channel standard deviations.
    """

    def __init__(self, features: Tensor, mean: Tensor, std: Tensor) -> None:
        self.features, self.mean, self.std = features, mean, std

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: Tensor | slice | Sequence[int]) -> Tensor:
        """(B,) -> (B, h, w, C) float32 on the device of `mean`."""
        return standardize(self.features[index].to(self.mean.device), self.mean, self.std)

    def batches(self, size: int = 64) -> Iterator[Tensor]:
        """Yield the cells of all images in order, (B, h, w, C) at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def sample(self, count: int, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the cells (n, h, w, C) and indices (n,) of at most `count` evenly spaced images."""
        if count:
            step = max(1, len(self) // count)
            for index in torch.arange(0, len(self), step)[:count].split(size):
                yield self[index], index.to(self.mean.device)


class Predictor(nn.Module):
    """Predicts the cells of normal images.

    Attributes:
        trained: whether the predictor is trained by gradient, on `loss`; otherwise `fit` is all of its training.
        whitened: whether residuals are measured relative to their covariance on normal images, not by their length.
    """

    trained = False
    whitened = True

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
            own: (B,), indices of the images if they are training images; what was memorized from an image is not used
                to predict it.
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
        """Describe what was trained or fitted."""
        return type(self).__name__


def choose(predictors: Iterable[str], members: Sequence[str] | None) -> list[str]:
    """Return the names of the predictors to use: `members`, or all if `members` is None.

    Raises:
        UserError: a name is unknown, or there is none.
    """
    known = list(predictors)
    for name in (known if members is None else members) or [""]:
        if name not in known:
            raise UserError(f"members: {unknown_name('predictor', name, known)}")
    return known if members is None else list(members)


def standardize(features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Standardize every channel to mean 0 and standard deviation 1. (..., C) -> (..., C) float32."""
    return (features.float() - mean) / std


def channel_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean and standard deviation of each channel over all cells. (N, h, w, C) -> (C,), (C,)."""
    total, squares, count = torch.zeros(()), torch.zeros(()), 0
    for part in features.split(64):
        flat = content_of(part).double()
        total, squares, count = total + flat.sum(0), squares + flat.square().sum(0), count + len(flat)
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    return mean.float(), torch.where(std > 1e-6, std, 1.0).float()  # constant channels are not scaled


def in_image(cells: Tensor) -> Tensor:
    """Return which cells are neither padding nor outside the region of interest. (..., C) -> (...) bool."""
    return ~cells[..., 0].isnan()


def extract_features(backbone: Callable[[Tensor, Tensor | None], Tensor], batch: Batch) -> Tensor:
    """Extract the features of a batch in [0, 1]. -> (B, h, w, C), NaN in padding and outside the region of interest."""
    return hide_cells(backbone(batch["image"], batch.get("size")), batch.get("content"))


def hide_cells(cells: Tensor, content: Tensor | None) -> Tensor:
    """Set cells without any pixel of `content` (B, H, W) to NaN; None keeps all. (B, h, w, C) -> (B, h, w, C)."""
    if content is None:
        return cells
    inside = F.adaptive_max_pool2d(content.float()[:, None], cells.shape[1:3])[:, 0] > 0  # (B, h, w)
    return cells.where(inside[..., None], torch.nan)


def is_padded(cells: Tensor) -> bool:
    """Return whether some cells (B, h, w, C) are padding; the images of an exported graph never have any."""
    return not torch.compiler.is_exporting() and not bool(in_image(cells).all())


def content_of(cells: Tensor) -> Tensor:
    """Select the cells that are `in_image`. (..., C) -> (n, C)."""
    return cells[in_image(cells)]


def image_means(cells: Tensor) -> Tensor:
    """Average the cells of each image. (B, h, w, C) -> (B, C)."""
    inside = in_image(cells)  # (B, h, w)
    return cells.where(inside[..., None], 0).sum((1, 2)) / inside.sum((1, 2))[:, None]


def mean_square(predicted: Tensor, cells: Tensor, hard: float = 0.0) -> Tensor:
    """Compute the mean squared error, ignoring padding. -> scalar.

    Args:
        predicted: (B, h, w, C).
        cells: (B, h, w, C), the targets.
        hard: fraction of the cells, those with the smallest errors, whose gradients are scaled by 0.1 (hard mining,
            Dinomaly).
    """
    inside = in_image(cells)
    error = (cells - predicted).where(inside[..., None], 0).square().mean(-1)  # (B, h, w)
    if hard:
        easy = error < error[inside].detach().quantile(hard)
        error = torch.where(easy, 0.1 * error + 0.9 * error.detach(), error)
    return error.sum() / inside.sum()


def content_shape(cells: Tensor) -> tuple[int, int]:
    """Count the rows and columns of an image's cells (h, w) that are not padding."""
    known = ~cells.isnan()
    return int(known[:, 0].sum()), int(known[0].sum())
