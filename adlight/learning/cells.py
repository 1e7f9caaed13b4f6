"""What a frozen detector knows of each cell of an image: its score, and features of what was not as expected.

Letters: B images, C channels, H x W pixels, h x w cells, D features of a cell. Cells of padding are NaN.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adlight.data.frames import content_of
from adlight.types import Batch, Scores, reconstruction_of

CELL = 16  # pixels a side, where a detector has no cells of its own


class Evidence(NamedTuple):
    """Cells of some images."""

    score: Tensor  # (B, h, w)
    features: Tensor  # (B, h, w, D)


def evidence_of(batch: Batch, scores: Scores) -> Evidence:
    """Take a detector's own cells and residuals or, where it has none, average its map and errors over cells."""
    if "cells" in scores and "residual" in scores:
        return Evidence(scores["cells"].float(), scores["residual"].float())
    pixel, image = scores["pixel"].float(), batch["image"].float()
    error = image - reconstruction_of(scores).float()  # (B, C, H, W)
    maps = torch.cat([pixel[:, None], error, error.abs()], 1)  # (B, 1 + 2 C, H, W)
    height, width = (-(-side // CELL) for side in pixel.shape[-2:])
    cells = F.adaptive_avg_pool2d(maps, (height, width)).permute(0, 2, 3, 1)  # (B, h, w, 1 + 2 C)
    if "size" in batch or "content" in batch:
        inside = share_of_cells(content_of(batch), height, width) > 0  # (B, h, w)
        cells = cells.where(inside[..., None], torch.nan)
    return Evidence(cells[..., 0], cells[..., 1:])


def share_of_cells(mask: Tensor, height: int, width: int) -> Tensor:
    """Compute which share of each cell a mask covers. (B, H, W) -> (B, h, w)."""
    return F.adaptive_avg_pool2d(mask.float()[:, None], (height, width))[:, 0]


def to_arrays(batch: Batch) -> tuple[np.ndarray, np.ndarray | None]:
    """Give a batch's images (B, C, H, W) uint8, and the heights and widths (B, 2) of padded ones, as arrays."""
    pixels = (batch["image"] * 255).round().to(torch.uint8).cpu().numpy()
    return pixels, batch["size"].cpu().numpy() if "size" in batch else None
