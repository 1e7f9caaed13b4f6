"""Anomaly scores of residuals: Mahalanobis distances under the covariance of normal residuals, per cluster of images.

Letters: B, N images, L cells per image, C features per cell, K clusters.
"""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

RESTARTS, ITERATIONS = 10, 50  # k-means
RIDGE = 0.1  # added to every variance, as a fraction of the mean variance


class Moments(NamedTuple):
    """Second moments of normal residuals, per cluster of images."""

    total: Tensor  # (K, C, C) float64, sum over images of the mean outer product of residuals
    images: Tensor  # (K,), number of images

    def plus(self, other: "Moments", sign: int = 1) -> "Moments":
        """Add a set of images, or remove it with `sign=-1`."""
        return Moments(self.total + sign * other.total, self.images + sign * other.images)


def second_moments(mean: Tensor, residual: Tensor, centers: Tensor) -> Moments:
    """Sum residuals by cluster. Mean cells (N, C), residuals (N, L, C), cluster centers (K, C) -> moments.

    Residuals are NaN for cells in padding or outside the region of interest.
    """
    cluster, channels = nearest_center(mean, centers), residual.shape[-1]
    known = ~residual[..., :1].isnan()  # (N, L, 1)
    # scaled so that the division by L below averages over the known cells of an image
    residual = residual.where(known, 0) * (residual.shape[1] / known.sum(1, keepdim=True)).sqrt()
    total = residual.new_zeros(len(centers), channels, channels, dtype=torch.float64)
    for k in cluster.unique().tolist():
        flat = residual[cluster == k].flatten(0, 1)  # (n L, C)
        total[k] = (flat.T @ flat).double() / residual.shape[1]
    return Moments(total, torch.bincount(cluster, minlength=len(centers)).double())


class Whitening(nn.Module):
    """Scores residuals relative to the residuals of normal images.

    Images are clustered by their mean features, without labels. Cluster k, with n_k normal images, has the covariance
    S'_k = a_k S_k + (1 - a_k) S of its own residuals (S_k) and of all residuals (S), with a_k = n_k / (n_k + prior).
    S_k and S are second moments about 0: the mean residual is not subtracted.
    The score of a cell with residual r is sqrt(mean_c (U^T r)_c^2 / (l_c + 0.1 mean l)), where S'_k = U diag(l) U^T.

    Args:
        channels: C.
        prior: weight of the pooled covariance, as a number of images.
        descriptors: length of the descriptors by which images are clustered; None for C, the mean features.

    Attributes:
        centers: (K, descriptors), cluster centers; empty before fitting.
        weight: (K, C, C); r @ weight[k] is white.
    """

    centers: Tensor
    weight: Tensor

    def __init__(self, channels: int, prior: float = 2.0, descriptors: int | None = None) -> None:
        super().__init__()
        self.prior = prior
        self.register_buffer("centers", torch.empty(0, descriptors or channels))
        self.register_buffer("weight", torch.empty(0, channels, channels))

    def fit(self, centers: Tensor, moments: Moments) -> "Whitening":
        """Estimate the covariances of the clusters with centers (K, C)."""
        total, count = moments
        pooled = total.sum(0) / count.sum()  # (C, C)
        own = total / count.clamp(min=1)[:, None, None]  # (K, C, C)
        share = (count / (count + self.prior))[:, None, None]  # (K, 1, 1)
        variance, basis = torch.linalg.eigh(share * own + (1 - share) * pooled)  # (K, C), (K, C, C)
        variance = variance.clamp(min=0) + RIDGE * variance.mean(1, keepdim=True) + 1e-12
        self.centers = centers
        self.weight = (basis * variance.rsqrt()[:, None, :]).to(centers.dtype)
        return self

    def forward(self, mean: Tensor, residual: Tensor) -> Tensor:
        """Score cells by the images' mean cells and residuals. (B, C), (B, L, C) -> (B, L)."""
        white = residual @ self.weight[nearest_center(mean, self.centers)]  # (B, L, C)
        return white.square().mean(-1).sqrt()


def fit_folds(
    whole: Whitening, folds: Sequence[Whitening], centers: Tensor, own: Sequence[Moments], more: Sequence[Moments]
) -> None:
    """Fit `whole` to all normal images, and each fold's whitening to all but the fold's own images.

    `own` are the moments of the folds, `more` of images in no fold, and `centers` (K, C) the cluster centers.
    """
    total = reduce(Moments.plus, (*own, *more))
    whole.fit(centers, total)
    for fold, moments in zip(folds, own, strict=True):
        fold.fit(centers, total.plus(moments, -1))


def nearest_center(mean: Tensor, centers: Tensor) -> Tensor:
    """Find the cluster of each image. (B, C), (K, C) -> (B,)."""
    return (mean.double()[:, None] - centers.double()).square().sum(2).argmin(1)


def k_means(points: Tensor, count: int) -> Tensor:
    """Find cluster centers (Lloyd 1982), the tightest from several k-means++ starts. (N, C) -> (K, C), K <= count."""
    rng, best, tightest = Generator().manual_seed(0), points[:1], float("inf")
    for _ in range(RESTARTS if count > 1 else 1):
        centers = _initial_centers(points, count, rng)
        for _ in range(ITERATIONS):
            cluster = torch.cdist(points, centers).argmin(1)
            moved = torch.stack([points[cluster == k].mean(0) for k in cluster.unique().tolist()])
            if moved.shape == centers.shape and torch.allclose(moved, centers):
                break
            centers = moved
        spread = float(torch.cdist(points, centers).amin(1).square().sum())
        if spread < tightest:
            best, tightest = centers, spread
    return best


def _initial_centers(points: Tensor, count: int, rng: Generator) -> Tensor:
    """Draw centers by k-means++ (Arthur & Vassilvitskii 2007), weighted by squared distance to the centers so far."""
    chosen = [int(torch.randint(len(points), (), generator=rng))]
    while len(chosen) < min(count, len(points)):
        distance = torch.cdist(points, points[chosen]).amin(1).square().cpu()
        if not distance.sum() > 0:  # all points coincide with a center
            break
        chosen.append(int(torch.multinomial(distance, 1, generator=rng)))
    return points[chosen]
