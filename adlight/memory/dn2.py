"""Nearest training images by deep features averaged over the image (DN2, Bergman et al. 2020): is it such an object?

For anomalies that are whole images, such as another class. Cells are compared too, so that there is a map.
"""

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional as F

from adlight.detection.whitening import Whitening, second_moments
from adlight.features.cells import TrainingCells, image_means
from adlight.features.predictor import Predictor
from adlight.settings import checked
from adlight.types import UserError

SPARE = 8  # images searched beyond k: products lose digits, the distances to those found do not
MIN_SPREAD = 0.05  # smallest spread of distances, as a share of their median; it is 0.15 to 0.3 (CIFAR-10)


class DeepNearestNeighbours(Predictor):
    """Scores an image by its mean distance to the nearest training images; all its cells are predicted as their mean.

    Distances are between means over an image's cells, each mean divided by its length and then whitened by the
    covariance over the training images. Bergman et al. compare means as they are; but a length says how much is seen
    of an object, not what it is, and some directions vary much among normal images.

    Image scores are in units of the spread of normal distances, from their median to the 90 % quantile. It is that of
    every second training image from those between: whitening makes the images that it is fitted to equally far apart.

    Args:
        channels: C.
        neighbours: how many images (k; 2 in the paper).
    """

    basis: Tensor
    bank: Tensor
    means: Tensor
    unit: Tensor
    channel: Tensor

    @checked
    def __init__(self, channels: PositiveInt, neighbours: PositiveInt = 2) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.register_buffer("means", torch.empty(0, channels))  # (N, C), of the training images
        self.register_buffer("basis", torch.eye(channels))  # (C, C), a direction @ basis is white
        self.register_buffer("bank", torch.empty(0, channels))  # (N, C), the directions of the means, white
        self.register_buffer("channel", torch.tensor([[0.0], [1.0]]).repeat(1, channels))  # means, standard deviations
        self.register_buffer("unit", torch.ones(()))  # spread of distances

    def check(self, count: int) -> None:
        """Refuse a number of training images that is not more than the neighbours."""
        if count <= self.neighbours:
            raise UserError(f"neighbours={self.neighbours} of {count} training images: lower neighbours")

    def fit(self, cells: TrainingCells) -> None:
        """Keep the training images' means."""
        self.check(len(cells))
        self.means = torch.cat([image_means(part) for part in cells.batches()])  # (N, C)
        self.channel = torch.stack([cells.mean, cells.std])
        direction = self._direction(self.means)  # (N, C)
        self._whiten(direction[::2])
        distance = torch.cat([self._nearest(part)[0].mean(1) for part in self.means[1::2].split(256)])  # (N / 2,)
        median = distance.median()
        self.unit = (distance.quantile(0.9) - median).clamp(min=MIN_SPREAD * median + 1e-12)
        self._whiten(direction)

    def forward(self, cells: Tensor, own: Tensor | None = None) -> Tensor:
        """Predict each cell as the mean cell of the nearest images, `own` not among them. (B, h, w, C) -> the same."""
        _, nearest = self._nearest(image_means(cells), own)
        return self.means[nearest].mean(1)[:, None, None].expand_as(cells)

    def residual(self, cells: Tensor, own: Tensor | None = None) -> Tensor:
        """Compute what sets cells apart from the nearest images' mean. (B, h, w, C) -> (B, h, w, C)."""
        return cells - self(cells, own)

    def image_score(self, cells: Tensor, score: Tensor) -> Tensor:
        """Average the distances to the nearest training images. (B, h, w, C) -> (B,)."""
        return self._nearest(image_means(cells))[0].mean(1) / self.unit

    def summary(self) -> str:
        """Say what was fitted."""
        return f"distance to the {self.neighbours} nearest of {len(self.bank)} training images, by their mean cells"

    def _direction(self, mean: Tensor) -> Tensor:
        """Divide the features of images by their length. (B, C) standardized -> (B, C)."""
        return F.normalize(mean * self.channel[1] + self.channel[0], dim=1)

    def _whiten(self, direction: Tensor) -> None:
        """Fit the whitening to the directions of images (N, C), and keep them, white."""
        center = direction.mean(0, keepdim=True)  # (1, C)
        moments = second_moments(direction, (direction - center)[:, None], center)
        self.basis = Whitening(direction.shape[1]).fit(center, moments).weight[0]
        self.bank = direction @ self.basis

    def _nearest(self, mean: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Find the nearest training images. (B, C) -> distances and places, (B, k) each."""
        x = self._direction(mean) @ self.basis  # (B, C)
        order = self.bank.square().sum(1) - 2 * x @ self.bank.T  # (B, N), of the distances
        if own is not None:
            order[torch.arange(len(own)), own] = torch.inf
        count = min(self.neighbours + SPARE, len(self.bank) - (own is not None))
        found = order.topk(count, largest=False).indices  # (B, k + SPARE)
        exact = (x[:, None] - self.bank[found]).norm(dim=2)  # (B, k + SPARE)
        distance, place = exact.topk(min(self.neighbours, count), largest=False)  # (B, k)
        return distance, found.gather(1, place)
