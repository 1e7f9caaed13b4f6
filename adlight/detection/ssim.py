"""Structural similarity with a sliding Gaussian window (Wang 2004)."""

from functools import lru_cache

import torch
from torch import Tensor

SIGMA, RADIUS = 1.5, 5  # pixels; the usual 11 x 11 window
C1, C2 = 0.01**2, 0.03**2  # for values in [0, 1]


@lru_cache(maxsize=32)
def gaussian_matrix(size: int, sigma: float, radius: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the matrix of a Gaussian filter along one axis that reflects at the borders. -> (size, size).

    Its rows sum to 1. Multiplying by it is several times faster, forwards and backwards, than a depthwise convolution.
    """
    with torch.inference_mode(False):  # cached while scoring, it may be needed for gradients later
        offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
        weight = torch.exp(-0.5 * (offset / sigma) ** 2)
        place = torch.arange(size)[:, None] + offset.long()  # (size, 2 radius + 1)
        place = (place.abs() - (place - size + 1).clamp(min=0) * 2).abs()  # reflected
        matrix = torch.zeros(size, size, dtype=torch.float64)
        matrix.scatter_add_(1, place, (weight / weight.sum()).expand(size, -1))
        return matrix.to(device, dtype)


def gaussian_blur(x: Tensor, sigma: float, radius: int) -> Tensor:
    """Blur the last two axes with a window of 2 radius + 1 pixels per side. (..., H, W) -> (..., H, W).

    Raises:
        ValueError: the image is too small to be reflected at its borders.
    """
    if min(x.shape[-2:]) <= radius:
        raise ValueError(f"an image of {x.shape[-2]}x{x.shape[-1]} pixels is too small for a window of radius {radius}")
    rows, columns = (gaussian_matrix(size, sigma, radius, x.device, x.dtype) for size in x.shape[-2:])
    with torch.autocast(x.device.type, enabled=False):
        return rows @ x @ columns.T


def ssim_map(x: Tensor, y: Tensor) -> Tensor:
    """Compute SSIM at each pixel and channel. x, y: (B, C, H, W) in [0, 1] -> (B, C, H, W) in [-1, 1]."""
    with torch.autocast(x.device.type, enabled=False):  # differences of squares need full precision
        x, y = x.float(), y.float()
        maps = torch.stack([x, y, x * x, y * y, x * y])  # (5, B, C, H, W)
        mean_x, mean_y, xx, yy, xy = gaussian_blur(maps, SIGMA, RADIUS)
        both, squares = mean_x * mean_y, mean_x.square() + mean_y.square()
        covariance, variances = xy - both, xx + yy - squares
        return (2 * both + C1) * (2 * covariance + C2) / ((squares + C1) * (variances + C2))
