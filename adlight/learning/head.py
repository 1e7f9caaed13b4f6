"""A linear head on the cells of a frozen detector, fitted to a few labelled defects.

Letters: N normal cells, n labelled defects, D features of a cell, K folds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adlight.learning.evidence import Evidence

RIDGE = 0.1  # of the mean variance, added to every variance
PRIOR = 8.0  # labelled defects that the detector's own map counts for
COVERED = 0.25  # share of a cell that a mask must cover
HIGH = 0.995  # quantile of normal cells above which those of a defect without a mask are taken for it


class Head(NamedTuple):
    """What is added to a cell's score: weight . features + bias."""

    weight: Tensor  # (D,)
    bias: Tensor  # ()


def fit_head(normal: Evidence, defects: Sequence[Tensor]) -> Head:
    """Fit Fisher's linear discriminant (1936) between normal cells and those of labelled defects.

    Its direction is v = (S + 0.1 mean(diag S) I)^-1 (m_1 - m_0), with mean m_0 and covariance S of the normal cells and
    the mean m_1 over images of their defects' cells. It is brought to the normal cells' mean 0 and the deviation of
    their scores, and weighs n / (n + 8), at least 0: without labels nothing changes, and no number of them silences the
    detector's own map, whose weight is 1.

    Args:
        normal: cells (N,) and (N, D), none of them NaN; none: a head that adds 0.
        defects: cells (n_i, D) of each labelled defect; none: likewise.
    """
    features = normal.features.double()
    if not defects or not len(features):
        return Head(features.new_zeros(features.shape[1]).float(), features.new_zeros(()).float())
    mean = features.mean(0)  # (D,)
    centred = features - mean
    covariance = centred.T @ centred / len(features)  # (D, D)
    ridge = RIDGE * covariance.diagonal().mean() + 1e-12
    defect = torch.stack([one.double().mean(0) for one in defects]).mean(0)  # (D,)
    direction = torch.linalg.solve(covariance + ridge * torch.eye(len(mean), dtype=mean.dtype), defect - mean)
    spread = (centred @ direction).std(correction=0).clamp(min=1e-12)
    share = len(defects) / (len(defects) + PRIOR)
    weight = share * normal.score.double().std(correction=0) / spread * direction
    return Head(weight.float(), -(weight @ mean).float())


def fit_folds(
    normal: Evidence, normal_fold: Tensor, defects: Sequence[Tensor], folds: int
) -> tuple[Head, tuple[Head, ...]]:
    """Fit a head to everything, and one without each fold, by which the fold itself is scored.

    Args:
        normal: cells (N,) and (N, D), none of them NaN.
        normal_fold: (N,) in 0...K - 1.
        defects: cells of each labelled defect; the i-th is in fold i % K.
        folds: K.
    """
    parts = []
    for fold in range(folds):
        kept = normal_fold != fold
        others = [one for i, one in enumerate(defects) if i % folds != fold]
        parts.append(fit_head(Evidence(*(one[kept] for one in normal)), others))
    return fit_head(normal, defects), tuple(parts)


def normal_cells(found: Evidence) -> Evidence:
    """Flatten the cells of normal images, padding left out. (B, h, w), (B, h, w, D) -> (N,), (N, D)."""
    inside = ~found.score.isnan()
    return Evidence(found.score[inside], found.features[inside])


def defect_cells(found: Evidence, covered: Tensor | None, high: float) -> Tensor:
    """Take a defect's cells of one image: those that its mask covers or, without one, whose score is high.

    Args:
        found: of one image, (h, w) and (h, w, D).
        covered: (h, w), share of each cell that the mask covers; None without one.
        high: a score that few normal cells exceed.

    Returns:
        (n, D), at least the cell that is covered most, or has the highest score.
    """
    level, least = (found.score, high) if covered is None else (covered, COVERED)
    level = level.where(~found.score.isnan(), -torch.inf)
    chosen = level >= min(least, float(level.max()))
    return found.features[chosen]
