"""Cells of an image, scored by a frozen detector, and a linear head on them, fitted to a few labelled defects.

A cell has an anomaly score, and features that describe how it differs from the detector's expectation; cells of padding
are NaN. Letters: B images or tiles, C channels, H x W pixels, h x w cells, N cells, n labelled defects, D features of a
cell, K folds.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adlight.data.frames import content_of
from adlight.types import Batch, Scores, reconstruction_of

CELL = 16  # side in pixels, for detectors without cells of their own
COVERED = 0.25  # share of a cell that a mask must cover
RIDGE = 0.1  # added to every variance, as a share of the mean variance
PRIOR = 8.0  # weight of the detector's own map, in labelled defects


class Cells(NamedTuple):
    """Cells of images or tiles, or N cells without their positions."""

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
    height, width = (math.ceil(side / CELL) for side in pixel.shape[-2:])
    cells = F.adaptive_avg_pool2d(maps, (height, width)).permute(0, 2, 3, 1)  # (B, h, w, 1 + 2 C)
    if "size" in batch or "content" in batch:
        inside = measure_coverage(content_of(batch), height, width) > 0  # (B, h, w)
        cells = cells.where(inside[..., None], torch.nan)
    return Cells(cells[..., 0], cells[..., 1:])


def measure_coverage(mask: Tensor, height: int, width: int) -> Tensor:
    """Compute the share of each cell that a mask covers. (B, H, W) -> (B, h, w)."""
    return F.adaptive_avg_pool2d(mask.float()[:, None], (height, width))[:, 0]


def select_normal_cells(cells: Cells) -> Cells:
    """Flatten the cells of normal images, without padding. (B, h, w), (B, h, w, D) -> (N,), (N, D)."""
    inside = ~cells.score.isnan()
    return Cells(cells.score[inside], cells.features[inside])


def select_defect_cells(cells: Cells, covered: Tensor | None, high: float) -> Tensor:
    """Select the defective cells of an image: covered by its mask or, without a mask, with scores above `high`.

    `covered` is the share of each cell that the mask covers, (B, h, w). -> features (N, D) of at least one cell.
    """
    level, least = (cells.score, high) if covered is None else (covered, COVERED)
    level = level.where(~cells.score.isnan(), -torch.inf)
    return cells.features[level >= min(least, float(level.max()))]


def to_arrays(batch: Batch) -> tuple[np.ndarray, np.ndarray | None]:
    """Convert images to uint8 arrays (B, C, H, W), and the heights and widths of padded ones to an array (B, 2)."""
    pixels = (batch["image"] * 255).round().to(torch.uint8).cpu().numpy()
    return pixels, batch["size"].cpu().numpy() if "size" in batch else None


class Head(NamedTuple):
    """A linear function added to a cell's score: weight . features + bias."""

    weight: Tensor  # (D,)
    bias: Tensor  # ()


def fit_head(normal: Cells, defects: Sequence[Tensor]) -> Head:
    """Fit Fisher's linear discriminant (1936) between normal cells and the cells (n_i, D) of each labelled defect.

    Its direction is v = (S + 0.1 mean(diag S) I)^-1 (m_1 - m_0), where m_0 and S are the mean and covariance of the
    normal cells, and m_1 is the mean over defects of the mean of their cells. The head has mean 0 on normal cells and
    the standard deviation of their scores, weighted by n / (n + 8): without labels nothing changes, and no number of
    labels outweighs the detector's own map, whose weight is 1. Without normal cells the head adds 0.
    """
    features = normal.features.double()
    if not defects or not len(features):
        return Head(features.new_zeros(features.shape[1]).float(), features.new_zeros(()).float())
    mean = features.mean(0)  # (D,)
    centred = features - mean
    covariance = centred.T @ centred / len(features)  # (D, D)
    ridge = RIDGE * covariance.diagonal().mean() + 1e-12
    defect = torch.stack([cells.double().mean(0) for cells in defects]).mean(0)  # (D,)
    direction = torch.linalg.solve(covariance + ridge * torch.eye(len(mean), dtype=mean.dtype), defect - mean)
    spread = (centred @ direction).std(correction=0).clamp(min=1e-12)
    share = len(defects) / (len(defects) + PRIOR)
    weight = share * normal.score.double().std(correction=0) / spread * direction
    return Head(weight.float(), -(weight @ mean).float())


def fit_folds(
    normal: Cells, normal_fold: Tensor, defects: Sequence[Tensor], folds: int
) -> tuple[Head, tuple[Head, ...]]:
    """Fit a head to all cells and, for each of K folds, a head to the cells of the other folds.

    `normal_fold` holds the fold of each normal cell, (N,); labelled defect i, with features (n_i, D), is in fold i % K.
    """
    parts = []
    for fold in range(folds):
        kept = normal_fold != fold
        others = [cells for i, cells in enumerate(defects) if i % folds != fold]
        parts.append(fit_head(Cells(normal.score[kept], normal.features[kept]), others))
    return fit_head(normal, defects), tuple(parts)
