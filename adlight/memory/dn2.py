"""Nearest training images by deep features averaged over the image (DN2, Bergman et al. 2020): is it such an object?

For anomalies that are whole images, such as another class. Cells are compared too, so that there is a map.
"""

import torch
from pydantic import PositiveInt
from torch import Tensor

from adlight.detection.whitening import Whitening, second_moments
from adlight.features.cells import TrainingCells, image_means
from adlight.features.predictor import Predictor
from adlight.settings import checked
from adlight.types import UserError

SPARE = 8  # images searched beyond k: products lose digits, the distances to those found do not


class DeepNearestNeighbours(Predictor):
    """Scores an image by its mean distance to the nearest training images; all its cells are predicted as their mean.

    Distances are between means over an image's cells, whitened by their covariance over the training images:
    Bergman et al. compare them as they are, which is worse wherever some directions vary much among normal images.

    Args:
        channels: C.
        neighbours: how many images (k; 2 in the paper).
    """

    basis: Tensor
    bank: Tensor
    means: Tensor

    @checked
    def __init__(self, channels: PositiveInt, neighbours: PositiveInt = 2) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.register_buffer("means", torch.empty(0, channels))  # (N, C), of the training images
        self.register_buffer("basis", torch.eye(channels))  # (C, C), x @ basis is white
        self.register_buffer("bank", torch.empty(0, channels))  # (N, C), the means, white

    def check(self, count: int) -> None:
        """Refuse a number of training images that is not more than the neighbours."""
        if count <= self.neighbours:
            raise UserError(f"neighbours={self.neighbours} of {count} training images: lower neighbours")

    def fit(self, cells: TrainingCells) -> None:
        """Keep the training images' means."""
        self.check(len(cells))
        self.means = torch.cat([image_means(part) for part in cells.batches()])
        center = self.means.mean(0, keepdim=True)  # (1, C)
        moments = second_moments(self.means, (self.means - center)[:, None], center)
        self.basis = Whitening(len(center[0])).fit(center, moments).weight[0]
        self.bank = self.means @ self.basis

    def forward(self, cells: Tensor, own: Tensor | None = None) -> Tensor:
        """Predict each cell as the mean cell of the nearest images, `own` not among them. (B, h, w, C) -> the same."""
        _, nearest = self._nearest(image_means(cells), own)
        return self.means[nearest].mean(1)[:, None, None].expand_as(cells)

    def residual(self, cells: Tensor, own: Tensor | None = None) -> Tensor:
        """Compute what sets cells apart from the nearest images' mean. (B, h, w, C) -> (B, h, w, C)."""
        return cells - self(cells, own)

    def image_score(self, cells: Tensor, score: Tensor) -> Tensor:
        """Average the distances to the nearest training images. (B, h, w, C) -> (B,)."""
        return self._nearest(image_means(cells))[0].mean(1)

    def summary(self) -> str:
        """Say what was fitted."""
        return f"distance to the {self.neighbours} nearest of {len(self.bank)} training images, by their mean cells"

    def _nearest(self, mean: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Find the nearest training images. (B, C) -> distances and places, (B, k) each."""
        x = mean @ self.basis  # (B, C)
        order = self.bank.square().sum(1) - 2 * x @ self.bank.T  # (B, N), of the distances
        if own is not None:
            order[torch.arange(len(own)), own] = torch.inf
        count = min(self.neighbours + SPARE, len(self.bank) - (own is not None))
        found = order.topk(count, largest=False).indices  # (B, k + SPARE)
        distance, place = (x[:, None] - self.bank[found]).norm(dim=2).topk(self.neighbours, largest=False)  # (B, k)
        return distance, found.gather(1, place)
