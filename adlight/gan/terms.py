"""Terms of an inverted image's score (thesis eq. 3-7 and 3-8; Schlegl 2019).

Letters: Z latent size, S side of the critic's last feature maps, D their number.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from adlight.detection.whitening import Moments, Whitening, second_moments
from adlight.gan.networks import Critic


def normalized_residual(image: Tensor, reconstruction: Tensor) -> Tensor:
    """Return L_n = |w(Q) - w(G(z))| / N, where w scales each image to [0, 1] (eq. 3-7). (B, C, H, W) twice -> (B,)."""
    return (unit_range(image) - unit_range(reconstruction)).flatten(1).norm(dim=1) / image[0].numel()


def unit_range(x: Tensor) -> Tensor:
    """Return w(x) = (x - min x) / (max x - min x) per image; a constant image becomes 0. (B, C, H, W) -> same."""
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return (x - low) / (high - low).clamp(min=torch.finfo(x.dtype).tiny)


def latent_norm(z: Tensor) -> Tensor:
    """Return L_o = -|z| / sqrt(Z) (eq. 3-8). (B, Z) -> (B,)."""
    return -z.norm(dim=1) / math.sqrt(z.shape[1])


def feature_distance(critic: Critic, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean squared difference of the critic's last features (Schlegl 2019). (B, C, H, W) twice -> (B,).

    Gradients flow through `y` only.
    """
    with torch.no_grad():
        target = critic.features(x).float()
    return (target - critic.features(y).float()).square().mean(1)


def cosine_distance(critic: Critic, x: Tensor, y: Tensor) -> Tensor:
    """Return 1 - cosine similarity of the critic's features, averaged over its layers. (B, C, H, W) twice -> (B,).

    Computed as half the squared difference of the unit vectors, as 1 - cos is inaccurate for small angles.
    """
    units = ([F.normalize(maps.float().flatten(1)) for maps in critic.feature_maps(image)] for image in (x, y))
    return torch.stack([(a - b).square().sum(1) / 2 for a, b in zip(*units, strict=True)]).mean(0)


def unit_differences(critic: Critic, x: Tensor, y: Tensor) -> Tensor:
    """Return the differences of the critic's last features, scaled to length 1, at each position.

    (B, C, H, W) twice -> (B, S * S, D).
    """
    last = [critic.feature_maps(image)[-1].float().flatten(2) for image in (x, y)]  # (B, D, S * S) each
    a, b = (maps / maps.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None] for maps in last)
    return (a - b).transpose(1, 2)


def whitened_distance(critic: Critic, x: Tensor, y: Tensor, whitening: Tensor) -> Tensor:
    """Return the Mahalanobis length of `unit_differences`. (B, C, H, W) twice, (D, D) -> (B,)."""
    difference = unit_differences(critic, x, y)  # (B, S * S, D)
    with torch.autocast(x.device.type, enabled=False):
        return (difference @ whitening).square().mean((1, 2)).sqrt()


def fit_whitening(parts: Iterable[Tensor]) -> Tensor:
    """Estimate the matrix that whitens `unit_differences` or other vectors, in parts (B, S * S, D). -> (D, D)."""
    total: Moments | None = None
    for part in parts:
        center = part.new_zeros(1, part.shape[2])  # a single cluster
        moments = second_moments(part.mean(1), part, center)
        total = moments if total is None else total.plus(moments)
    if total is None:
        raise ValueError("no differences to estimate a covariance from")
    return Whitening(part.shape[2]).fit(center, total).weight[0]
