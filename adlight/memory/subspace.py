"""Principal components of cells, as in SubspaceAD: normal cells lie near a subspace, and defects leave it."""

import torch
from pydantic import PositiveInt
from torch import Tensor

from adlight.features.cells import TrainingCells, content_of
from adlight.features.predictor import Predictor
from adlight.settings import PositiveShare, checked


class Subspace(Predictor):
    """Projects cells onto the principal components of the training cells, pooled over all images and positions.

    Args:
        channels: C.
        explained: fraction of the variance that the components explain.
    """

    mean: Tensor
    components: Tensor
    whitened = False

    @checked
    def __init__(self, channels: PositiveInt, explained: PositiveShare = 0.95) -> None:
        super().__init__()
        self.explained = explained
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("components", torch.empty(0, channels))  # orthonormal rows

    def fit(self, cells: TrainingCells) -> None:
        """Compute the mean and the components from the covariance, accumulated batch by batch."""
        total, outer, count = torch.zeros(()), torch.zeros(()), 0
        for part in cells.batches():
            flat = content_of(part).double()  # (n, C)
            total, outer, count = total + flat.sum(0), outer + flat.T @ flat, count + len(flat)
        mean = total / count  # (C,)
        variance, basis = torch.linalg.eigh(outer / count - mean[:, None] * mean)  # ascending
        share = variance.flip(0).clamp(min=0).cumsum(0) / variance.clamp(min=0).sum()
        kept = int((share < self.explained).sum()) + 1
        self.mean, self.components = mean.float(), basis.flip(1).T[:kept].float().contiguous()

    def forward(self, cells: Tensor) -> Tensor:
        """Project cells onto the subspace. (B, h, w, C) -> (B, h, w, C)."""
        return (cells - self.mean) @ self.components.T @ self.components + self.mean

    def summary(self) -> str:
        """Describe the subspace."""
        return f"distance to the span of {len(self.components)} principal components of cells"
