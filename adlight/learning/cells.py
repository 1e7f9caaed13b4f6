"""Cells of an image as a frozen detector sees them: anomaly scores, and features of what was not as expected.

Letters: B images or tiles, C channels, H x W pixels, h x w cells, N cells, D features of a cell. Cells of padding are
NaN.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adlight.data.frames import content_of
from adlight.types import Batch, Scores, reconstruction_of

CELL = 16  # pixels a side, for detectors without cells of their own
COVERED = 0.25  # share of a cell that a mask must cover


class Cells(NamedTuple):
    """Cells of images or tiles, or N cells without their places."""

    score: Tensor  # (B, h, w) or (N,)
    features: Tensor  # (B, h, w, D) or (N, D)

    def to(self, device: torch.device | str) -> "Cells":
        """Move the cells to a device."""
        return Cells(self.score.to(device), self.features.to(device))


def extract_cells(batch: Batch, scores: Scores) -> Cells:
    """Return a detector's own cells and residuals, or average its map and reconstruction errors over cells."""
    if "cells" in scores and "residual" in scores:
        return Cells(scores["cells"].float(), scores["residual"].float())
    pixel, image = scores["pixel"].float(), batch["image"].float()
    error = image - reconstruction_of(scores).float()  # (B, C, H, W)
    maps = torch.cat([pixel[:, None], error, error.abs()], 1)  # (B, 1 + 2 C, H, W)
    height, width = (-(-side // CELL) for side in pixel.shape[-2:])
    cells = F.adaptive_avg_pool2d(maps, (height, width)).permute(0, 2, 3, 1)  # (B, h, w, 1 + 2 C)
    if "size" in batch or "content" in batch:
        inside = measure_coverage(content_of(batch), height, width) > 0  # (B, h, w)
        cells = cells.where(inside[..., None], torch.nan)
    return Cells(cells[..., 0], cells[..., 1:])


def measure_coverage(mask: Tensor, height: int, width: int) -> Tensor:
    """Compute the share of each cell that a mask covers. (B, H, W) -> (B, h, w)."""
    return F.adaptive_avg_pool2d(mask.float()[:, None], (height, width))[:, 0]


def select_normal_cells(cells: Cells) -> Cells:
    """Flatten the cells of normal images without padding. (B, h, w), (B, h, w, D) -> (N,), (N, D)."""
    inside = ~cells.score.isnan()
    return Cells(cells.score[inside], cells.features[inside])


def select_defect_cells(cells: Cells, covered: Tensor | None, high: float) -> Tensor:
    """Select the cells of one image's defect: those that its mask covers or, without a mask, those with high scores.

    Args:
        cells: Cells of the image or of its tiles.
        covered: (B, h, w) share of each cell that the mask covers; None without a mask.
        high: Score that few normal cells exceed.

    Returns:
        Features (N, D), at least those of the cell with the largest coverage or score.
    """
    level, least = (cells.score, high) if covered is None else (covered, COVERED)
    level = level.where(~cells.score.isnan(), -torch.inf)
    return cells.features[level >= min(least, float(level.max()))]


def to_arrays(batch: Batch) -> tuple[np.ndarray, np.ndarray | None]:
    """Convert images to uint8 arrays (B, C, H, W), and the heights and widths of padded ones to an array (B, 2)."""
    pixels = (batch["image"] * 255).round().to(torch.uint8).cpu().numpy()
    return pixels, batch["size"].cpu().numpy() if "size" in batch else None
