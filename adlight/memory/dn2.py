"""Nearest training images by deep features averaged over the image (DN2, Bergman et al. 2020): is it such an object?

For anomalies that are whole images, such as another class. Cells are compared too, so that there is a map.
"""

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from adlight.detection.whitening import Whitening, second_moments
from adlight.features.cells import TrainingCells, image_means
from adlight.features.predictor import Predictor
from adlight.settings import checked
from adlight.types import UserError

SPARE = 8  # images searched beyond k: products lose digits, the distances to those found do not
RARE = 1e-6  # smallest mean posterior of a class


class DeepNearestNeighbours(Predictor):
    """Scores an image by its mean distance to the nearest training images; all its cells are predicted as their mean.

    Distances are between means over an image's cells, each mean divided by its length and then whitened by the
    covariance over the training images. Bergman et al. compare means as they are; but a length says how much is seen
    of an object, not what it is, and some directions vary much among normal images.

    If the backbone has a layer `classifier`, its classes are a second opinion: the cross-entropy between an image's
    posterior p and the mean posterior m of the training images, -sum p log m, is added to the distance (not in the
    paper). Both are measured from their median over the training images, in units of the spread up to the 90 %
    quantile; for distances, each training image is left out in turn.

    Args:
        channels: C.
        neighbours: how many images (k; 2 in the paper).
        class_weight: weight of the cross-entropy.
    """

    basis: Tensor
    bank: Tensor
    means: Tensor
    log_posterior: Tensor
    spread: Tensor
    channel: Tensor

    @checked
    def __init__(
        self, channels: PositiveInt, neighbours: PositiveInt = 2, class_weight: NonNegativeFloat = 0.1
    ) -> None:
        super().__init__()
        self.neighbours, self.class_weight = neighbours, class_weight
        self.register_buffer("means", torch.empty(0, channels))  # (N, C), of the training images
        self.register_buffer("basis", torch.eye(channels))  # (C, C), a direction @ basis is white, and 0 for logits
        self.register_buffer("bank", torch.empty(0, channels))  # (N, C), the directions of the means, white
        self.register_buffer("channel", torch.tensor([[0.0], [1.0]]).repeat(1, channels))  # means, standard deviations
        self.register_buffer("log_posterior", torch.empty(0))  # (classes,), log m
        self.register_buffer("spread", torch.tensor([[0.0, 0.0], [1.0, 1.0]]))  # of distances and cross-entropies

    def check(self, count: int) -> None:
        """Refuse a number of training images that is not more than the neighbours."""
        if count <= self.neighbours:
            raise UserError(f"neighbours={self.neighbours} of {count} training images: lower neighbours")

    def fit(self, cells: TrainingCells) -> None:
        """Keep the training images' means, and what their classes are."""
        self.check(len(cells))
        self.means = torch.cat([image_means(part) for part in cells.batches()])  # (N, C)
        self.channel = torch.stack([cells.mean, cells.std])
        direction = self._direction(self.means)  # (N, C)
        x = direction[:, : direction.shape[1] - self.classes]  # (N, F), without the logits
        center = x.mean(0, keepdim=True)  # (1, F)
        moments = second_moments(x, (x - center)[:, None], center)
        self.basis = torch.zeros_like(self.basis)
        self.basis[: x.shape[1], : x.shape[1]] = Whitening(x.shape[1]).fit(center, moments).weight[0]
        self.bank = direction @ self.basis
        if self.classes:
            self.log_posterior = self._posterior(self.means).mean(0).clamp(min=RARE).log()
            every = torch.arange(len(x), device=x.device)
            parts = [self._nearest(self.means[i], i)[0].mean(1) for i in every.split(256)]
            self.spread = _spread(torch.stack([torch.cat(parts), self._cross_entropy(self.means)], 1))

    def forward(self, cells: Tensor, own: Tensor | None = None) -> Tensor:
        """Predict each cell as the mean cell of the nearest images, `own` not among them. (B, h, w, C) -> the same."""
        _, nearest = self._nearest(image_means(cells), own)
        return self.means[nearest].mean(1)[:, None, None].expand_as(cells)

    def residual(self, cells: Tensor, own: Tensor | None = None) -> Tensor:
        """Compute what sets cells apart from the nearest images' mean. (B, h, w, C) -> (B, h, w, C)."""
        return cells - self(cells, own)

    def image_score(self, cells: Tensor, score: Tensor) -> Tensor:
        """Average the distances to the nearest training images, and add the cross-entropy. (B, h, w, C) -> (B,)."""
        mean = image_means(cells)  # (B, C)
        distance = self._nearest(mean)[0].mean(1)  # (B,)
        if not self.classes:
            return distance
        both = torch.stack([distance, self._cross_entropy(mean)], 1)  # (B, 2)
        relative = (both - self.spread[0]) / self.spread[1]
        return relative[:, 0] + self.class_weight * relative[:, 1]

    def summary(self) -> str:
        """Say what was fitted."""
        return f"distance to the {self.neighbours} nearest of {len(self.bank)} training images, by their mean cells"

    def _direction(self, mean: Tensor) -> Tensor:
        """Divide the features of images by their length, and leave the logits out. (B, C) standardized -> (B, C)."""
        raw = mean * self.channel[1] + self.channel[0]  # (B, C)
        return F.normalize(F.pad(raw[:, : raw.shape[1] - self.classes], (0, self.classes)), dim=1)

    def _posterior(self, mean: Tensor) -> Tensor:
        """Compute what the classifier says of images. (B, C) -> (B, classes)."""
        return (mean * self.channel[1] + self.channel[0])[:, -self.classes :].softmax(1)

    def _cross_entropy(self, mean: Tensor) -> Tensor:
        """Compute -sum p log m. (B, C) -> (B,)."""
        return -(self._posterior(mean) @ self.log_posterior)

    def _nearest(self, mean: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Find the nearest training images. (B, C) -> distances and places, (B, k) each."""
        x = self._direction(mean) @ self.basis  # (B, C)
        order = self.bank.square().sum(1) - 2 * x @ self.bank.T  # (B, N), of the distances
        if own is not None:
            order[torch.arange(len(own)), own] = torch.inf
        count = min(self.neighbours + SPARE, len(self.bank) - (own is not None))
        found = order.topk(count, largest=False).indices  # (B, k + SPARE)
        distance, place = (x[:, None] - self.bank[found]).norm(dim=2).topk(self.neighbours, largest=False)  # (B, k)
        return distance, found.gather(1, place)


def _spread(values: Tensor) -> Tensor:
    """Compute medians, and distances from there to the 90 % quantiles. (N, 2) -> (2, 2)."""
    median = values.median(0).values
    return torch.stack([median, (values.quantile(0.9, 0) - median).clamp(min=1e-12)])
