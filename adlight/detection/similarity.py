"""Similarity of images: structural (SSIM, Wang 2004), and perceptual by AlexNet's features (LPIPS, Zhang 2018)."""

from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal

import torch
from torch import Tensor, nn

from adlight.settings import checked
from adlight.types import UserError

SIGMA, RADIUS = 1.5, 5  # SSIM's usual Gaussian window of 11 x 11 pixels
C1, C2 = 0.01**2, 0.03**2  # for values in [0, 1]
Layers = Literal["calibrated", "raw"]


@lru_cache(maxsize=32)
def gaussian_matrix(size: int, sigma: float, radius: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the matrix of a Gaussian filter along an axis that is reflected at the borders. -> (size, size).

    Its rows sum to 1. Multiplying by it is several times faster, forwards and backwards, than a depthwise convolution.
    """
    with torch.inference_mode(False):  # the result is cached, and training may use it later
        offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
        weight = torch.exp(-0.5 * (offset / sigma) ** 2)
        index = torch.arange(size)[:, None] + offset.long()  # (size, 2 radius + 1)
        index = (index.abs() - (index - size + 1).clamp(min=0) * 2).abs()  # reflected
        matrix = torch.zeros(size, size, dtype=torch.float64)
        matrix.scatter_add_(1, index, (weight / weight.sum()).expand(size, -1))
        return matrix.to(device, dtype)


def gaussian_blur(x: Tensor, sigma: float, radius: int) -> Tensor:
    """Blur images, reflected at the borders, with a window of 2 radius + 1 pixels. (..., H, W) -> (..., H, W).

    Images that are too small to be reflected are a ValueError.
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


def alexnet_path() -> Path:
    """Return the file in which torchvision stores AlexNet's weights once they are downloaded."""
    return Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-owt-7be5be79.pth"


class PerceptualDistance:
    """LPIPS per pixel, with frozen weights.

    Not an `nn.Module`, so that its weights stay out of its owner's optimizer, EMA, DDP and checkpoints.

    Args:
        layers: `calibrated` uses the learned weights of the lpips package; `raw` is the plain mean over layers: the
            article's eq. 13, except that the package normalizes features to unit length.

    Raises:
        UserError: AlexNet's weights are missing or damaged and cannot be downloaded.
    """

    @checked
    def __init__(self, layers: Layers = "calibrated") -> None:
        import lpips  # imports torchvision, which takes a second

        try:
            with torch.random.fork_rng(devices=[]):  # it draws random weights before loading the trained weights
                network = lpips.LPIPS(net="alex", lpips=layers == "calibrated", spatial=True, verbose=False)
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:  # from urllib, or a damaged file
            path, reason = alexnet_path(), " ".join(str(error).split())
            raise UserError(
                f"LPIPS needs AlexNet's weights, which cannot be fetched or read ({reason}): put {path.name} "
                f"(torchvision's AlexNet_Weights.IMAGENET1K_V1) into {path.parent}, or turn LPIPS off (objective: "
                "lpips=0; scorer: another score)"
            ) from error
        self.network: nn.Module = network.eval().requires_grad_(False)
        self.divisor = 1 if layers == "calibrated" else len(self.network.chns)  # the package sums over layers

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Compare images (B, C, H, W) in [0, 1]; raise a UserError if they are smaller than 32 pixels. -> (B, H, W)."""
        if min(x.shape[-2:]) < 32:
            raise UserError(
                f"LPIPS needs images of at least 32x32 pixels, got {x.shape[-2]}x{x.shape[-1]}: turn it off "
                "(objective: lpips=0; scorer: another score)"
            )
        self.network.to(x.device)  # moves only in the first call
        x, y = (2 * image.expand(-1, 3, -1, -1).float() - 1 for image in (x, y))  # AlexNet expects colour images
        return self.network(x, y)[:, 0] / self.divisor
