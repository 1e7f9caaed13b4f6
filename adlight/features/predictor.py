"""What every detector in feature space does: predict the cells of a normal image, so that residuals show defects.

Cells of padding and outside a region of interest are NaN, and so is what is computed of them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from adlight.types import Batch


class Copies(NamedTuple):
    """Rotated copies of training images."""

    features: Tensor  # (M, h, w, C) float16
    owner: Tensor  # (M,), indices of the images
    turns: Tensor  # (M,), quarter turns

    def of_images(self, index: Tensor) -> "Copies":
        """Select the copies of some images (n,) int64, ascending; owners become places among these."""
        kept = torch.isin(self.owner, index)
        return Copies(self.features[kept], torch.searchsorted(index, self.owner[kept]), self.turns[kept])


class TrainingCells:
    """The training images' features, standardized as they are read.

    Args:
        features: (N, h, w, C) float16, as a cache keeps them.
        mean: (C,) of all cells.
        std: (C,) of all cells.
        copies: rotated copies of some images, which neither the length nor the indices count.
    """

    def __init__(self, features: Tensor, mean: Tensor, std: Tensor, copies: Copies | None = None) -> None:
        self.features, self.mean, self.std, self.copies = features, mean, std, copies

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: Tensor | slice | Sequence[int]) -> Tensor:
        """(B,) -> (B, h, w, C) float32 on the device of `mean`."""
        return standardize(self.features[index].to(self.mean.device), self.mean, self.std)

    def batches(self, size: int = 64) -> Iterator[Tensor]:
        """Read all images in order, (B, h, w, C) at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def batches_with_copies(self, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
        """Read all images and then their copies: (B, h, w, C), and indices of the images (B,), at a time."""
        for start in range(0, len(self), size):
            part = self[start : start + size]
            yield part, torch.arange(start, start + len(part))
        if self.copies is not None:
            for features, owner in zip(self.copies.features.split(size), self.copies.owner.split(size), strict=True):
                yield standardize(features.to(self.mean.device), self.mean, self.std), owner

    def draw(self, index: Tensor, rng: Generator) -> Tensor:
        """Read images in a random one of the orientations that they have copies of. (B,) -> (B, h, w, C)."""
        features = self.features[index]
        if self.copies is not None:
            turns = torch.randint(4, (len(index),), generator=rng)
            for place in (self.copies.owner[:, None] == index).nonzero():  # (2,): of a copy and in the batch
                copy, row = place.tolist()
                drawn = self.copies.turns[copy] == turns[row]
                features[row] = self.copies.features[copy] if drawn else features[row]
        return standardize(features.to(self.mean.device), self.mean, self.std)

    def sample(self, count: int, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
        """Read at most `count` images, evenly spaced, with their places: (n, h, w, C) and (n,) at a time."""
        if count:
            step = max(1, len(self) // count)
            for place in torch.arange(0, len(self), step)[:count].split(size):
                yield self[place], place.to(self.mean.device)


class Predictor(nn.Module):
    """Predicts the cells of normal images. Without `trained`, `fit` is all the training there is.

    Attributes:
        trained: by gradient, on `loss`.
        whitened: residuals are measured by their covariance on normal images; otherwise by their plain length.
        takes_copies: rotated copies of training images are of use.
    """

    trained = False
    whitened = True
    takes_copies = False

    def check(self, count: int) -> None:
        """Refuse a number of training images that is too small to fit to.

        Raises:
            UserError: it is.
        """

    def fit(self, cells: TrainingCells) -> None:
        """Take what is needed from the training images, in one go."""

    def forward(self, cells: Tensor) -> Tensor:
        """Predict. (B, h, w, C) -> (B, h, w, C)."""
        raise NotImplementedError

    def residual(self, cells: Tensor, own: Tensor | None = None) -> Tensor:
        """Compute what the prediction misses. (B, h, w, C) -> (B, h, w, C).

        Args:
            cells: of some images.
            own: (B,) their places among the training images, where they are training images; what was memorized of an
                image does not serve to predict it.
        """
        return cells - self(cells)

    def loss(self, cells: Tensor, rng: Generator) -> Tensor:
        """Compute the mean squared residual. (B, h, w, C) -> scalar.

        Args:
            cells: of training images.
            rng: the only source of what a training step draws.
        """
        return mean_square(self(cells), cells)

    def image_score(self, cells: Tensor, score: Tensor) -> Tensor | None:
        """Compute an own image score (B,) from cells (B, h, w, C) and their scores (B, h, w); None: the usual one."""
        return None

    def matrices(self) -> list[nn.Parameter]:
        """List the weights for an optimizer that wants matrices (Muon)."""
        return []

    def summary(self) -> str:
        """Say what was trained or fitted."""
        return type(self).__name__


def standardize(features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Bring every channel to mean 0 and deviation 1. (..., C) -> (..., C) float32."""
    return (features.float() - mean) / std


def channel_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Compute each channel's mean and deviation over all images and places. (N, h, w, C) -> (C,), (C,)."""
    total, squares, count = torch.zeros(()), torch.zeros(()), 0
    for part in features.split(64):
        flat = content_of(part).double()
        total, squares, count = total + flat.sum(0), squares + flat.square().sum(0), count + len(flat)
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    return mean.float(), torch.where(std > 1e-6, std, 1.0).float()  # a dead channel stays what it is


def in_image(cells: Tensor) -> Tensor:
    """Say which cells are no padding. (..., C) -> (...) bool."""
    return ~cells[..., 0].isnan()


def extract_features(backbone: Callable[[Tensor, Tensor | None], Tensor], batch: Batch) -> Tensor:
    """Extract the features of a batch in [0, 1]; cells of padding or outside a region of interest are NaN.

    -> (B, h, w, C).
    """
    return hide_cells(backbone(batch["image"], batch.get("size")), batch.get("content"))


def hide_cells(cells: Tensor, content: Tensor | None) -> Tensor:
    """Make cells NaN in which none of (B, H, W) pixels counts; None: all do. (B, h, w, C) -> (B, h, w, C)."""
    if content is None:
        return cells
    inside = F.adaptive_max_pool2d(content.float()[:, None], cells.shape[1:3])[:, 0] > 0  # (B, h, w)
    return cells.where(inside[..., None], torch.nan)


def is_padded(cells: Tensor) -> bool:
    """Say whether some images have padding (B, h, w, C); an exported graph only takes images that fill their frame."""
    return not torch.compiler.is_exporting() and not bool(in_image(cells).all())


def content_of(cells: Tensor) -> Tensor:
    """Take the cells that are no padding. (..., C) -> (n, C)."""
    return cells[in_image(cells)]


def image_means(cells: Tensor) -> Tensor:
    """Average each image's cells. (B, h, w, C) -> (B, C)."""
    inside = in_image(cells)  # (B, h, w)
    return cells.where(inside[..., None], 0).sum((1, 2)) / inside.sum((1, 2))[:, None]


def mean_square(predicted: Tensor, cells: Tensor, hard: float = 0.0) -> Tensor:
    """Compute the mean squared difference, padding left out. (B, h, w, C), (B, h, w, C) -> scalar.

    Args:
        predicted: what is trained.
        cells: its targets.
        hard: share of the cells, the best predicted ones, whose gradients are a tenth (hard mining, Dinomaly).
    """
    inside = in_image(cells)
    error = (cells - predicted).where(inside[..., None], 0).square().mean(-1)  # (B, h, w)
    if hard:
        easy = error < error[inside].detach().quantile(hard)
        error = torch.where(easy, 0.1 * error + 0.9 * error.detach(), error)
    return error.sum() / inside.sum()


def content_shape(cells: Tensor) -> tuple[int, int]:
    """Count the rows and columns of the cells (h, w) of one image that are no padding."""
    known = ~cells.isnan()
    return int(known[:, 0].sum()), int(known[0].sum())
