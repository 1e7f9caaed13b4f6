"""DN2 (Bergman et al. 2020): the distance to the nearest training images by features averaged over the image.

Meant for images that are anomalous as a whole, such as objects of another class.
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

SPARE = 8  # candidates beyond k, whose distances are then computed exactly: inner products lose digits
MIN_SPREAD = 0.05  # smallest spread of distances as a fraction of their median; on CIFAR-10 it is 0.15 to 0.3


class DeepNearestNeighbours(Predictor):
    """Scores an image by its mean distance to the nearest training images, whose mean predicts each of its cells.

    Distances are between images' mean cells, scaled to length 1 and then whitened by the covariance over the training
    images. Bergman et al. compare the means themselves; but their lengths tell how much of an object is visible, not
    what it is, and some directions vary much among normal images.

    Image scores are in units of the spread of normal distances, from the median to the 90 % quantile. It is measured
    between one half of the training images and the other, to which the whitening is fitted: whitening makes the images
    that it is fitted to equally far apart.

    Args:
        channels: C.
        neighbours: k, the number of nearest images; 2 in the paper.
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
        self.register_buffer("basis", torch.eye(channels))  # (C, C), direction @ basis is white
        self.register_buffer("bank", torch.empty(0, channels))  # (N, C), whitened directions of the means
        self.register_buffer("channel", torch.tensor([[0.0], [1.0]]).repeat(1, channels))  # means, standard deviations
        self.register_buffer("unit", torch.ones(()))  # spread of distances

    def check(self, count: int) -> None:
        """Check that there are more training images than neighbours."""
        if count <= self.neighbours:
            raise UserError(f"neighbours={self.neighbours} of {count} training images is too many: lower neighbours")

    def fit(self, cells: TrainingCells) -> None:
        """Store the training images' means, and measure the spread of normal distances."""
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
        """Predict each cell as the mean of the nearest images but `own`. (B, h, w, C) -> (B, h, w, C)."""
        _, nearest = self._nearest(image_means(cells), own)
        return self.means[nearest].mean(1)[:, None, None].expand_as(cells)

    def residual(self, cells: Tensor, own: Tensor | None = None) -> Tensor:
        """Subtract the mean of the nearest images but `own` from cells. (B, h, w, C) -> (B, h, w, C)."""
        return cells - self(cells, own)

    def image_score(self, cells: Tensor, score: Tensor) -> Tensor:
        """Average the distances to the nearest training images. (B, h, w, C) -> (B,)."""
        return self._nearest(image_means(cells))[0].mean(1) / self.unit

    def summary(self) -> str:
        """Describe the stored images."""
        return f"distance to the {self.neighbours} nearest of {len(self.bank)} training images, by their mean cells"

    def _direction(self, mean: Tensor) -> Tensor:
        """Undo the standardization of mean cells, and scale them to length 1. (B, C) -> (B, C)."""
        return F.normalize(mean * self.channel[1] + self.channel[0], dim=1)

    def _whiten(self, direction: Tensor) -> None:
        """Fit the whitening to the directions of images (N, C), and store the whitened directions."""
        center = direction.mean(0, keepdim=True)  # (1, C)
        moments = second_moments(direction, (direction - center)[:, None], center)
        self.basis = Whitening(direction.shape[1]).fit(center, moments).weight[0]
        self.bank = direction @ self.basis

    def _nearest(self, mean: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Find the nearest training images. (B, C) -> distances and indices, (B, k) each."""
        x = self._direction(mean) @ self.basis  # (B, C)
        squared = self.bank.square().sum(1) - 2 * x @ self.bank.T  # (B, N), squared distances but |x|^2
        if own is not None:
            squared[torch.arange(len(own)), own] = torch.inf
        count = min(self.neighbours + SPARE, len(self.bank) - (own is not None))
        candidates = squared.topk(count, largest=False).indices  # (B, k + SPARE)
        exact = (x[:, None] - self.bank[candidates]).norm(dim=2)  # (B, k + SPARE)
        distance, nearest = exact.topk(min(self.neighbours, count), largest=False)  # (B, k)
        return distance, candidates.gather(1, nearest)
