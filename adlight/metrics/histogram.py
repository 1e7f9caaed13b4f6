"""Pixels by score, and the metrics that can be read from such a histogram."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from adlight.metrics.image import ConfusionCounts, missing_class


class Histogram(NamedTuple):
    """Pixels by score, K occupied bins from low to high; the pixels of one bin are tied."""

    lower: Tensor  # (K,) float32, least score that falls into the bin
    upper: Tensor  # (K,) float32, greatest one
    pixels: Tensor  # (2, K) int64, normal and defective pixels
    overlap: Tensor  # (K,) int64, sum of region_weights

    def flagged(self, threshold: float) -> Tensor:
        """Count normal and defective pixels above a threshold (2,) int64; one within a bin leaves that bin out.

        Raises:
            ValueError: the threshold is NaN.
        """
        if math.isnan(threshold):
            raise ValueError("the pixel threshold is NaN: nothing has calibrated it")
        return self.pixels[:, self.lower.double() > threshold].sum(1)

    def quantile(self, share: float) -> float:
        """Find the smallest known score that at least this share of the normal pixels does not exceed.

        Raises:
            ValueError: there is no normal pixel.
        """
        below = self._normal().cumsum(0)
        wanted = max(share * below[-1].item() * (1 - 1e-12), 1)  # 0.07 * 100 is 7.000...01
        return self.upper[torch.searchsorted(below.double(), wanted)].item()

    def mean_and_deviation(self) -> tuple[float, float]:
        """Compute the mean and the population standard deviation of the normal pixels' scores.

        Raises:
            ValueError: there is no normal pixel.
        """
        weight = self._normal() / self.pixels[0].sum().double()
        center = (self.lower.double() + self.upper.double()) / 2
        mean = (weight * center).sum()
        return mean.item(), (weight * (center - mean).square()).sum().sqrt().item()

    def _normal(self) -> Tensor:
        if not self.pixels[0].any():
            raise ValueError("no normal pixels to take a threshold from")
        return self.pixels[0]


def pixel_metrics(histogram: Histogram, flagged: Tensor | None) -> tuple[dict[str, float], dict[str, str]]:
    """Compute every pixel metric that the masks allow.

    Args:
        histogram: pixels by score.
        flagged: (2,) normal and defective pixels above the calibrated threshold; None where there is none.

    Returns:
        The metrics by name, and for each name that is left out the reason why. No value is ever NaN.
    """
    normal, defective = histogram.pixels.sum(1).tolist()
    ranking = ("auroc", "ap", "f1_max", "f1_max_threshold")
    found: dict[str, float | None] = dict.fromkeys(
        (*(f"pixel_{name}" for name in ranking), "aupro", "pixel_iou_calibrated")
    )
    if not (missing := missing_class(normal, defective, "pixels")):
        fp, tp = histogram.pixels.flip(1).cumsum(1, dtype=torch.float64)  # exact below 2^53
        below = histogram.lower.flip(0).nextafter(torch.tensor(-torch.inf))
        values = ConfusionCounts(tp, fp).ranking(below)
        found |= {f"pixel_{name}": values[name] for name in ranking}
        found["aupro"] = aupro(fp, histogram.overlap.flip(0).cumsum(0))
    if flagged is not None and defective:
        found["pixel_iou_calibrated"] = int(flagged[1]) / (defective + int(flagged[0]))
    reasons = {name: missing or "" for name, value in found.items() if value is None}
    if flagged is None:
        reasons["pixel_iou_calibrated"] = "no calibrated threshold"
    return {name: value for name, value in found.items() if value is not None}, reasons


def aupro(false_positive: Tensor, overlap: Tensor, limit: float = 0.3) -> float:
    """Compute the area under the per-region-overlap curve up to a false positive rate, divided by that rate.

    Bergmann et al. 2021, The MVTec Anomaly Detection Dataset, section 5.

    Args:
        false_positive: (K,) normal pixels flagged as the threshold falls; the last one is their number.
        overlap: (K,) sum of `region_weights` flagged at the same thresholds.
        limit: false positive rate up to which the curve counts; it is straight within a step.

    Returns:
        1 for a perfect map, limit / 2 for a constant one.
    """
    steps = 1 + int((false_positive < limit * false_positive[-1]).sum())  # S: up to the one that reaches the limit
    fpr = pad(false_positive[:steps].double() / false_positive[-1], (1, 0))  # (S + 1,) from (0, 0)
    pro = pad(overlap[:steps].double() / overlap[-1], (1, 0))  # (S + 1,)
    width = fpr.diff()
    inside = ((limit - fpr[:-1]) / width.clamp(min=1e-300)).clamp(0, 1)  # share of the step below the limit
    middle = pro[:-1] + inside * pro.diff() / 2
    return ((width * inside * middle).sum() / limit).item()
