"""The whitened residual: prediction errors relative to the errors on normal images.

Letters: B, N images, windows of p x p pixels, h x w windows, D = C p^2 values of a window, K clusters.
"""

from collections.abc import Sequence

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from adlight.detection.maps import smooth
from adlight.detection.whitening import Moments, Whitening, fit_folds, k_means, nearest_center, second_moments
from adlight.settings import Channels, checked
from adlight.types import UserError

Pair = tuple[Tensor, Tensor]
THUMBNAIL = 8  # side, in pixels, of the thumbnails by which images are clustered
PLACES = 32  # usual lengths are stored on a grid of 32 x 32 positions


class WhitenedResidual(nn.Module):
    """Measures residuals in overlapping windows by their covariance on normal images, separately per image cluster.

    The length of a window's residual, see `Whitening`, is divided by the root mean square of the lengths at the same
    position in the cluster's normal images, because at edges every small shift causes residuals. After fitting, it can
    be called like the other error maps of `ReconstructionError`.

    Args:
        channels: C.
        window: p.
        stride: distance between neighbouring windows, in pixels; the map is interpolated between them.
        cluster_size: mean number of images per cluster; images are clustered by their thumbnails.

    Attributes:
        whitening: whitens the windows.
        scale: (K, PLACES, PLACES), squares of the usual lengths; empty before fitting.
        folds: per fold of the held-out images, a residual fitted without it that scores it; not saved in checkpoints.
    """

    scale: Tensor

    @checked
    def __init__(
        self, channels: Channels = 3, window: PositiveInt = 8, stride: PositiveInt = 4, cluster_size: PositiveInt = 24
    ) -> None:
        super().__init__()
        if stride > window:
            raise ValueError(f"stride {stride} is larger than the window of {window} pixels")
        self.channels, self.window, self.stride, self.cluster_size = channels, window, stride, cluster_size
        self.whitening = Whitening(channels * window**2, descriptors=channels * THUMBNAIL**2)
        self.register_buffer("scale", torch.empty(0, PLACES, PLACES))
        self.folds: list[WhitenedResidual] = []

    def fit(self, held_out: Sequence[Sequence[Pair]], training: Sequence[Pair]) -> None:
        """Cluster the images, and estimate the covariances and usual lengths of their residuals.

        Args:
            held_out: pairs of images and reconstructions (n, C, H, W) of equal size, for each fold of held-out images.
            training: further pairs, of training images.
        """
        parts = (*held_out, training)
        small = torch.cat([thumbnails(image) for part in parts for image, _ in part])  # (N, C THUMBNAIL^2)
        centers = k_means(small, max(1, len(small) // self.cluster_size))
        *own, more = (self._moments(part, centers) for part in parts)
        settings = self.channels, self.window, self.stride, self.cluster_size
        self.folds = [WhitenedResidual(*settings).to(centers.device) for _ in own]
        fit_folds(self.whitening, [fold.whitening for fold in self.folds], centers, own, [more])
        sums = zip(*(self._lengths(part) for part in parts), strict=True)
        total, count = (torch.stack(values) for values in sums)  # (F + 1, K, PLACES, PLACES), (F + 1, K) for F folds
        self._fit_scale(total.sum(0), count.sum(0))
        for k, fold in enumerate(self.folds):
            fold._fit_scale(total.sum(0) - total[k], count.sum(0) - count[k])

    def forward(self, image: Tensor, reconstruction: Tensor) -> Tensor:
        """Measure the windows around each pixel. (B, C, H, W) twice -> (B, H, W)."""
        if not len(self.scale):
            raise UserError("score=mahalanobis: no covariances were fitted: train again, or evaluate with this setting")
        length = self.lengths(image, reconstruction)  # (B, h, w)
        usual = self.scale[nearest_center(thumbnails(image), self.whitening.centers)]  # (B, PLACES, PLACES)
        length = length / _resize(usual, *length.shape[1:]).sqrt()
        wide = _resize(length, *(side * self.stride for side in length.shape[1:]))
        return wide[:, : image.shape[-2], : image.shape[-1]]  # (B, H, W)

    def lengths(self, image: Tensor, reconstruction: Tensor) -> Tensor:
        """Compute the lengths of whitened windows. (B, C, H, W) twice -> (B, h, w)."""
        cells = self.cells(image - reconstruction)  # (B, h, w, D)
        return self.whitening(thumbnails(image), cells.flatten(1, 2)).unflatten(1, cells.shape[1:3])

    def cells(self, residual: Tensor) -> Tensor:
        """Cut windows around every `stride` pixels. (B, C, H, W) -> (B, h, w, D)."""
        height, width = residual.shape[-2:]
        margin = self.window - self.stride
        before, rest = margin // 2, margin - margin // 2
        padding = (before, rest + -width % self.stride, before, rest + -height % self.stride)
        padded = F.pad(residual, padding, mode="reflect")
        windows = padded.unfold(2, self.window, self.stride).unfold(3, self.window, self.stride)  # (B, C, h, w, p, p)
        return windows.permute(0, 2, 3, 1, 4, 5).flatten(3)  # (B, h, w, D)

    def _moments(self, pairs: Sequence[Pair], centers: Tensor) -> Moments:
        parts = [second_moments(thumbnails(x), self.cells(x - y).flatten(1, 2), centers) for x, y in pairs]
        return Moments(*(torch.stack(sums).sum(0) for sums in zip(*parts, strict=True)))

    def _lengths(self, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        """Sum the squared lengths at each position by cluster. -> (K, PLACES, PLACES), and image counts (K,)."""
        square = torch.cat([F.adaptive_avg_pool2d(self.lengths(x, y).square(), PLACES) for x, y in pairs])
        cluster = nearest_center(torch.cat([thumbnails(x) for x, _ in pairs]), self.whitening.centers)
        member = F.one_hot(cluster, len(self.whitening.centers)).to(square)  # (N, K)
        return torch.einsum("nk,nhw->khw", member, square), member.sum(0)

    def _fit_scale(self, total: Tensor, count: Tensor) -> None:
        """Average and smooth the squared lengths; with few images, shrink them towards their overall mean.

        The shrunk value is a geometric mean: an arithmetic mean is dominated by positions with large residuals.
        """
        mean = smooth(total / count.clamp(min=1)[:, None, None], 0.7)  # (K, PLACES, PLACES)
        share = (count / (count + self.whitening.prior))[:, None, None]
        pooled = (total.sum() / (count.sum() * PLACES**2)).clamp(min=1e-12)
        self.scale = (mean / pooled).clamp(min=1e-6) ** share * pooled


def _resize(maps: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(maps[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]


def thumbnails(image: Tensor) -> Tensor:
    """Shrink images to flat thumbnails. (B, C, H, W) -> (B, C THUMBNAIL^2)."""
    return F.adaptive_avg_pool2d(image, THUMBNAIL).flatten(1)
