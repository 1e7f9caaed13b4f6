"""Terms of an inverted image's score (thesis eq. 3-7 and 3-8; Schlegl 2019).

Letters: Z latent size, S side of the critic's last feature maps, D their number, P values of an image.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from adlight.detection.whitening import RIDGE, Moments, Whitening, second_moments
from adlight.gan.networks import Critic

RESIDUAL = ("residual_basis", "residual_gain", "residual_rest")  # what `fit_residual_whitening` fits


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


def fit_residual_whitening(residual: Tensor) -> dict[str, Tensor]:
    """Estimate how residuals x - G(z) of training images (N, C, H, W) vary over the whole image, for `whitened_map`.

    S is their second moment about 0, plus `RIDGE` times the mean variance, so that N may be far smaller than P. It is
    kept as its min(N, P) directions (P, K), the gains S^(-1/2) along them (K,), and the gain () in all other
    directions, in which residuals of training images do not vary.
    """
    flat = residual.double().flatten(1)  # (N, P)
    _, singular, basis = torch.linalg.svd(flat, full_matrices=False)  # (K,), (K, P)
    variance = singular.square() / len(flat)  # (K,)
    ridge = RIDGE * variance.sum() / flat.shape[1] + 1e-12
    found = basis.T, (variance + ridge).rsqrt(), ridge.rsqrt()
    return {name: value.float().contiguous() for name, value in zip(RESIDUAL, found, strict=True)}


def whitened_map(x: Tensor, y: Tensor, basis: Tensor, gain: Tensor, rest: Tensor) -> Tensor:
    """Return (S^(-1/2) (x - y))^2, averaged over channels; its mean is the squared Mahalanobis distance over P.

    (B, C, H, W) twice, (P, K), (K,), () -> (B, H, W).
    """
    with torch.autocast(x.device.type, enabled=False):
        residual = (x.float() - y.float()).flatten(1)  # (B, P)
        white = rest * residual + ((residual @ basis) * (gain - rest)) @ basis.T
        return white.view_as(x).square().mean(1)
