"""Conversion of pixels or features to a grid of L tokens with P values each, and back."""

from functools import lru_cache
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from adlight.data.frames import Size, is_content, parse_size
from adlight.settings import checked

Fold = Annotated[int, Field(ge=1, le=16)]  # side of a token in cells; the number of values grows with its square


class PixelTokenizer:
    """Cuts images into square patches; each is a token.

    Args:
        image_size: side of the images in pixels, or their (height, width).
        channels: C.
        patch_size: side of a patch in pixels, a divisor of the images' height and width.

    Attributes:
        grid: rows and columns of the patches.
        dim: P.
        mean: typical value of a token.
    """

    mean = 0.5  # pixels are in [0, 1]

    @checked
    def __init__(self, image_size: Size = 224, channels: PositiveInt = 3, patch_size: PositiveInt = 16) -> None:
        height, width = parse_size(image_size)
        if height % patch_size or width % patch_size:
            raise ValueError(f"image_size {image_size} is not a multiple of patch_size {patch_size}")
        self.patch_size, self.grid = patch_size, (height // patch_size, width // patch_size)
        self.dim = channels * patch_size**2

    def tokenize(self, image: Tensor, size: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, L, P); padding beyond the images' `size` (B, 2) is set to `mean`."""
        if size is not None:
            image = image.where(is_content(size, image[:, 0])[:, None], self.mean)
        return patchify(image, self.patch_size)

    def detokenize(self, tokens: Tensor) -> Tensor:
        """(B, L, P) -> (B, C, H, W)."""
        return unpatchify(tokens, self.patch_size, self.grid)


def patchify(image: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches, in row-major order. (B, C, H, W) -> (B, L, P) with P = C patch_size^2."""
    b, c, h, w = image.shape
    rows, columns = h // patch_size, w // patch_size
    patches = image.reshape(b, c, rows, patch_size, columns, patch_size)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(b, rows * columns, c * patch_size**2)


def unpatchify(tokens: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """Assemble images from patches, the inverse of `patchify`. (B, L, P) -> (B, C, H, W)."""
    b, (rows, columns) = tokens.shape[0], grid
    patches = tokens.reshape(b, rows, columns, -1, patch_size, patch_size)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(b, -1, rows * patch_size, columns * patch_size)


def fold_cells(x: Tensor, fold: int) -> tuple[Tensor, tuple[int, int]]:
    """Fold squares of cells into tokens; edges are repeated. (B, h, w, C) -> (B, L, C fold^2), and the token grid."""
    b, height, width, channels = x.shape
    rows, columns = -(-height // fold), -(-width // fold)
    if (rows * fold, columns * fold) != (height, width):
        padding = (0, columns * fold - width, 0, rows * fold - height)
        x = F.pad(x.permute(0, 3, 1, 2), padding, mode="replicate").permute(0, 2, 3, 1)
    x = x.reshape(b, rows, fold, columns, fold, channels).transpose(2, 3)  # (B, rows, columns, fold, fold, C)
    return x.reshape(b, rows * columns, fold * fold * channels), (rows, columns)


def unfold_cells(tokens: Tensor, fold: int, grid: tuple[int, int], shape: torch.Size) -> Tensor:
    """Undo `fold_cells`. (B, L, C fold^2) -> (B, h, w, C) of `shape`."""
    b, height, width, channels = shape
    cells = tokens.reshape(b, *grid, fold, fold, channels).transpose(2, 3)
    return cells.reshape(b, grid[0] * fold, grid[1] * fold, channels)[:, :height, :width]


def sincos_positions(grid: tuple[int, int], width: int, device: torch.device | None = None) -> Tensor:
    """Compute 2-D sine-cosine position embeddings of a grid (Vaswani 2017; He 2021). -> (L, D)."""
    if width % 4:
        raise ValueError(f"width {width} is not a multiple of 4, which 2-D positions need")
    with torch.inference_mode(False):  # the result is cached, and training may use it later
        return _sincos(tuple(grid), width, device or torch.get_default_device())


@lru_cache(maxsize=32)
def _sincos(grid: tuple[int, int], width: int, device: torch.device) -> Tensor:
    frequency = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64, device=device) / (width // 4))  # (D/4,)
    angles = [torch.arange(side, dtype=torch.float64, device=device)[:, None] * frequency for side in grid]
    rows, columns = (torch.cat([angle.sin(), angle.cos()], dim=1) for angle in angles)  # (side, D/2)
    both = [rows[:, None].expand(-1, grid[1], -1), columns.expand(grid[0], -1, -1)]  # (h, w, D/2) each
    return torch.cat(both, dim=-1).flatten(0, 1).float()
