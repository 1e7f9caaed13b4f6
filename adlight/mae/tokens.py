"""Images to patches and back, and the fixed positions of patches."""

import math

import torch
from torch import Tensor


def patchify(image: Tensor, patch: int) -> Tensor:
    """Cut images into patches, row by row. (B, C, H, W) -> (B, L, P) with P = C patch^2."""
    b, c, h, w = image.shape
    grid = image.reshape(b, c, h // patch, patch, w // patch, patch)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // patch) * (w // patch), c * patch * patch)


def unpatchify(patches: Tensor, patch: int, channels: int) -> Tensor:
    """Put square images together again; the inverse of `patchify`. (B, L, P) -> (B, C, H, W)."""
    b, length, _ = patches.shape
    side = math.isqrt(length)
    grid = patches.reshape(b, side, side, channels, patch, patch)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(b, channels, side * patch, side * patch)


def sincos_positions(side: int, width: int) -> Tensor:
    """Fixed 2-D sine-cosine positions of a side x side grid (Vaswani 2017; He 2021). -> (L, D).

    Raises:
        ValueError: the width is not a multiple of 4 (sine and cosine, of row and column).
    """
    if width % 4:
        raise ValueError(f"width {width} is not a multiple of 4, which the 2-D positions need")
    frequency = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))  # (D/4,)
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency  # (side, D/4)
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)  # (side, D/2)
    rows = axis[:, None, :].expand(side, side, -1)
    columns = axis[None, :, :].expand(side, side, -1)
    return torch.cat([rows, columns], dim=-1).reshape(side * side, width).float()
