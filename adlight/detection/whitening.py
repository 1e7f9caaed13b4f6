"""Residuals to anomaly scores: Mahalanobis lengths by covariances of normal residuals, one a cluster of images.

Letters: B, N images, L cells an image, C features of a cell, K clusters.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

RIDGE = 0.1  # of the mean variance, added to every variance


class Moments(NamedTuple):
    """Second moments of normal residuals: (K, C, C) sums over images of each image's mean outer product, in float64."""

    total: Tensor
    images: Tensor  # (K,), how many

    def plus(self, other: "Moments", sign: int = 1) -> "Moments":
        """Join two sets of images, or take one out of a set."""
        return Moments(self.total + sign * other.total, self.images + sign * other.images)


def second_moments(mean: Tensor, residual: Tensor, centers: Tensor) -> Moments:
    """Sum up residuals by cluster, without those that are NaN. (N, C), (N, L, C), (K, C) -> moments."""
    cluster, channels = nearest_center(mean, centers), residual.shape[-1]
    known = ~residual[..., :1].isnan()  # (N, L, 1)
    residual = residual.where(known, 0) * (residual.shape[1] / known.sum(1, keepdim=True)).sqrt()
    total = residual.new_zeros(len(centers), channels, channels, dtype=torch.float64)
    for k in cluster.unique().tolist():
        flat = residual[cluster == k].flatten(0, 1)  # (n L, C)
        total[k] = (flat.T @ flat).double() / residual.shape[1]
    return Moments(total, torch.bincount(cluster, minlength=len(centers)).double())


class Whitening(nn.Module):
    """Measures residuals in units of what normal images show.

    Images are put in clusters by their mean features, without labels. Cluster k has the covariance
    S'_k = w_k S_k + (1 - w_k) S of its own and all residuals, w_k = n_k / (n_k + prior) of n_k normal images; a cell's
    score is sqrt(mean_c (U^T r)_c^2 / (l_c + 0.1 mean l)) with S'_k = U diag(l) U^T.

    Args:
        channels: C.
        prior: weight of the pooled covariance, in images.
        descriptors: length of what tells images apart; None: C, the mean features.

    Attributes:
        centers: (K, descriptors), without rows until it is fitted.
        weight: (K, C, C), r @ weight[k] is white.
    """

    centers: Tensor
    weight: Tensor

    def __init__(self, channels: int, prior: float = 2.0, descriptors: int | None = None) -> None:
        super().__init__()
        self.prior = prior
        self.register_buffer("centers", torch.empty(0, descriptors or channels))
        self.register_buffer("weight", torch.empty(0, channels, channels))

    def fit(self, centers: Tensor, moments: Moments) -> "Whitening":
        """Estimate the covariances of clusters with centres (K, C)."""
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
        """Score cells. (B, C), (B, L, C) -> (B, L)."""
        white = residual @ self.weight[nearest_center(mean, self.centers)]  # (B, L, C)
        return white.square().mean(-1).sqrt()


def fit_folds(
    whole: Whitening, folds: Sequence[Whitening], centers: Tensor, own: Sequence[Moments], more: Sequence[Moments]
) -> None:
    """Fit to all normal images, and for each fold of them to all but its own.

    Args:
        whole: of all.
        folds: one per fold.
        centers: (K, C) of clusters.
        own: moments of the folds.
        more: moments of images in no fold.
    """
    total = own[0]
    for one in (*own[1:], *more):
        total = total.plus(one)
    whole.fit(centers, total)
    for fold, mine in zip(folds, own, strict=True):
        fold.fit(centers, total.plus(mine, -1))


def nearest_center(mean: Tensor, centers: Tensor) -> Tensor:
    """Find the cluster of each image. (B, C), (K, C) -> (B,)."""
    return (mean.double()[:, None] - centers.double()).square().sum(2).argmin(1)


def k_means(points: Tensor, count: int, *, restarts: int = 10, steps: int = 50, seed: int = 0) -> Tensor:
    """Find cluster centres (Lloyd 1982) from k-means++ starts; the tightest of some restarts. (N, C) -> (K, C)."""
    rng, best, tightest = Generator().manual_seed(seed), points[:1], float("inf")
    for _ in range(restarts if count > 1 else 1):
        centers = _spread(points, count, rng)
        for _ in range(steps):
            cluster = torch.cdist(points, centers).argmin(1)
            kept = [points[cluster == k].mean(0) for k in range(len(centers)) if (cluster == k).any()]
            moved = torch.stack(kept)
            if moved.shape == centers.shape and torch.allclose(moved, centers):
                break
            centers = moved
        spread = float(torch.cdist(points, centers).amin(1).square().sum())
        if spread < tightest:
            best, tightest = centers, spread
    return best


def _spread(points: Tensor, count: int, rng: Generator) -> Tensor:
    """Draw starts by k-means++ (Arthur & Vassilvitskii 2007): each by its squared distance to those before."""
    chosen = [int(torch.randint(len(points), (), generator=rng))]
    while len(chosen) < min(count, len(points)):
        distance = torch.cdist(points, points[chosen]).amin(1).square().cpu()
        if not distance.sum() > 0:  # all points are chosen ones
            break
        chosen.append(int(torch.multinomial(distance, 1, generator=rng)))
    return points[chosen]
