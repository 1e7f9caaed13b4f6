"""Histogram of pixel scores, and the metrics computed from it."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from adlight.metrics.image import ConfusionCounts, missing_class

PIXEL_RANKING = ("auroc", "ap", "f1_max", "f1_max_threshold")


class Histogram(NamedTuple):
    """Pixels by score in K occupied bins of ascending score; pixels in the same bin are tied."""

    lower: Tensor  # (K,) float32, smallest score of the bin
    upper: Tensor  # (K,) float32, largest score of the bin
    pixels: Tensor  # (2, K) int64, numbers of normal and of defective pixels
    overlap: Tensor  # (K,) int64, sum of `region_weights`

    def flagged(self, threshold: float) -> Tensor:
        """Count normal and defective pixels in the bins above a threshold, which must not be NaN. -> (2,) int64."""
        if math.isnan(threshold):
            raise ValueError("the pixel threshold is NaN: it was not calibrated")
        return self.pixels[:, self.lower.double() > threshold].sum(1)

    def quantile(self, share: float) -> float:
        """Find the smallest score that at least the fraction `share` of the normal pixels does not exceed."""
        cumulative = self._normal().cumsum(0)
        count = max(share * cumulative[-1].item() * (1 - 1e-12), 1)  # 0.07 * 100 is 7.000...01
        return self.upper[torch.searchsorted(cumulative.double(), count)].item()

    def mean_and_deviation(self) -> tuple[float, float]:
        """Compute the mean and the population standard deviation of the normal pixels."""
        weight = self._normal() / self.pixels[0].sum().double()
        center = (self.lower.double() + self.upper.double()) / 2
        mean = (weight * center).sum()
        return mean.item(), (weight * (center - mean).square()).sum().sqrt().item()

    def _normal(self) -> Tensor:
        if not self.pixels[0].any():
            raise ValueError("no normal pixels to take a threshold from")
        return self.pixels[0]


def pixel_metrics(histogram: Histogram, flagged: Tensor | None) -> tuple[dict[str, float], dict[str, str]]:
    """Compute all pixel metrics that are defined for the masks.

    `flagged` are the numbers of normal and defective pixels above the calibrated threshold, (2,); None without it.

    Returns:
        The metrics by name, and the reasons why others are left out, by name. No value is NaN.
    """
    normal, defective = histogram.pixels.sum(1).tolist()
    metrics, reasons = dict[str, float](), dict[str, str]()
    if missing := missing_class(normal, defective, "pixels"):
        reasons |= dict.fromkeys((*(f"pixel_{name}" for name in PIXEL_RANKING), "aupro"), missing)
    else:
        fp, tp = histogram.pixels.flip(1).cumsum(1, dtype=torch.float64)  # exact below 2^53
        below = histogram.lower.flip(0).nextafter(torch.tensor(-torch.inf))
        ranking = ConfusionCounts(tp, fp).ranking(below)
        metrics |= {f"pixel_{name}": ranking[name] for name in PIXEL_RANKING}
        metrics["aupro"] = aupro(fp, histogram.overlap.flip(0).cumsum(0))
    if flagged is None:
        reasons["pixel_iou_calibrated"] = "no calibrated threshold"
    elif missing and not defective:
        reasons["pixel_iou_calibrated"] = missing
    else:
        metrics["pixel_iou_calibrated"] = int(flagged[1]) / (defective + int(flagged[0]))
    return metrics, reasons


def aupro(false_positive: Tensor, overlap: Tensor, limit: float = 0.3) -> float:
    """Compute the area under the per-region overlap curve up to a false positive rate, divided by that rate.

    Bergmann et al. 2021, The MVTec Anomaly Detection Dataset, section 5. The curve is linear between thresholds.

    Args:
        false_positive: (K,), number of flagged normal pixels as the threshold falls; in the end, all of them.
        overlap: (K,), sum of the flagged `region_weights` at the same thresholds.
        limit: the false positive rate.

    Returns:
        1 for a perfect map, limit / 2 for a constant map.
    """
    steps = 1 + int((false_positive < limit * false_positive[-1]).sum())  # S, including the step that reaches the limit
    fpr = pad(false_positive[:steps].double() / false_positive[-1], (1, 0))  # (S + 1,) from (0, 0)
    pro = pad(overlap[:steps].double() / overlap[-1], (1, 0))  # (S + 1,)
    width = fpr.diff()
    inside = ((limit - fpr[:-1]) / width.clamp(min=1e-300)).clamp(0, 1)  # fraction of the step below the limit
    middle = pro[:-1] + inside * pro.diff() / 2
    return ((width * inside * middle).sum() / limit).item()
