"""A linear head on the cells of a frozen detector, fitted to a few labelled defects.

Letters: N normal cells, n labelled defects, D features of a cell, K folds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adlight.learning.cells import Cells

RIDGE = 0.1  # added to every variance, as a share of the mean variance
PRIOR = 8.0  # weight of the detector's own map, in labelled defects


class Head(NamedTuple):
    """A linear function added to a cell's score: weight . features + bias."""

    weight: Tensor  # (D,)
    bias: Tensor  # ()


def fit_head(normal: Cells, defects: Sequence[Tensor]) -> Head:
    """Fit Fisher's linear discriminant (1936) between normal cells and those of labelled defects.

    Its direction is v = (S + 0.1 mean(diag S) I)^-1 (m_1 - m_0), with the mean m_0 and covariance S of the normal cells
    and the mean m_1 over images of their defects' cells. The head is scaled to mean 0 on normal cells and to the
    standard deviation of their scores, and weighted by n / (n + 8), at least 0: without labels nothing changes, and no
    number of labels silences the detector's own map, whose weight is 1.

    Args:
        normal: Normal cells (N,) and (N, D), without NaN. If there are none, the head adds 0.
        defects: Features (n_i, D) of each labelled defect's cells. If there are none, the head adds 0.
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
    """Fit a head to all cells, and for each fold a head to the cells of the other folds.

    Args:
        normal: Normal cells (N,) and (N, D), without NaN.
        normal_fold: (N,) fold of each normal cell, 0...K - 1.
        defects: Features of each labelled defect's cells; defect i is in fold i % K.
        folds: K.
    """
    parts = []
    for fold in range(folds):
        kept = normal_fold != fold
        others = [cells for i, cells in enumerate(defects) if i % folds != fold]
        parts.append(fit_head(Cells(normal.score[kept], normal.features[kept]), others))
    return fit_head(normal, defects), tuple(parts)
