"""Thresholds that labelled images support: for a recall or a precision that is asked for, and how sure that is.

Of n labelled defects and a new one, in any order equally likely, the new one's score is above the k-th smallest of the
n with probability 1 - k / (n + 1) at least (split conformal prediction, see `metrics.methods`; scores must not come of
a head that has seen the very image). Everywhere, anomalous means `score > threshold`.
"""

import math
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from adlight.types import UserError

CONFIDENCE = 0.95


class Support(NamedTuple):
    """A threshold, and what can be said of it."""

    threshold: float
    text: str


def recall_threshold(score: Tensor, recall: float) -> Support:
    """Find the highest threshold that a new defect is above with at least this probability.

    Args:
        score: (n,) of labelled defects.
        recall: above 0 and below 1. Where n is too small for it, the threshold is just below the lowest score.

    Raises:
        UserError: there is no labelled defect.
    """
    count, asked = len(score), Fraction(str(recall))
    if not count:
        raise UserError(f"recall={recall} needs labelled defects, and there are none: label some, or leave it out")
    rank = math.floor((count + 1) * (1 - asked))
    promised = float(1 - Fraction(max(rank, 1), count + 1))
    ordered = score.float().sort().values
    if rank:
        return Support(ordered[rank - 1].item(), f"of {count} labelled defects: at least {promised:.3g} of new ones")
    lowest = torch.nextafter(ordered[0], ordered[0].new_tensor(-torch.inf)).item()
    needed = math.ceil(1 / (1 - asked)) - 1
    said = f"of {count} labelled defects, which can promise no more than {promised:.3g}: below the lowest score; "
    return Support(lowest, f"{said}{needed} are needed")


def precision_threshold(score: Tensor, label: Tensor, precision: float) -> Support:
    """Find the lowest threshold at which this share of the labelled images above it are defects.

    The share is that among labelled images: it holds for new ones if as many of them are defects.

    Args:
        score: (n,) of labelled images.
        label: (n,) 0 normal, 1 defect.
        precision: above 0 and below 1.

    Raises:
        UserError: a class is missing, or no threshold reaches it.
    """
    defects, normals = int(label.sum()), int((label == 0).sum())
    if not defects or not normals:
        raise UserError(
            f"precision={precision} needs labelled defects and labelled normal images, there are {defects} and "
            f"{normals}: label more, or leave it out"
        )
    value, place = score.float().unique(return_inverse=True)  # rising
    true, called = (
        torch.bincount(place, weights, len(value)).flip(0).cumsum(0).flip(0)
        for weights in (label.double(), torch.ones_like(label, dtype=torch.double))
    )  # of those at or above each score
    reached = (true / called >= precision).nonzero()[:, 0]
    if not len(reached):
        best = float((true / called).max())
        raise UserError(f"precision={precision} is not reached: the best of {defects} + {normals} labels is {best:.3g}")
    at = int(reached[0])
    below = value[at - 1] if at else torch.nextafter(value[0], value.new_tensor(-torch.inf))
    hits, total = int(true[at]), int(called[at])
    said = f"{hits} of {total} labelled images above it are defects: at least {lower_bound(hits, total):.3g}, with"
    return Support(below.item(), f"{said} {CONFIDENCE:.0%} confidence")


def lower_bound(hits: int, total: int) -> float:
    """Bound a share from below (Clopper & Pearson 1934), one-sided: 0.05^(1 / n) where all n are hits."""
    from scipy.stats import beta

    return float(beta.ppf(1 - CONFIDENCE, hits, total - hits + 1)) if hits else 0.0
