"""A histogram of pixel scores and the metrics that can be read from it."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from adlight.metrics.aupro import aupro
from adlight.metrics.curve import Curve
from adlight.metrics.image import F1Max, parse_rule


class Histogram(NamedTuple):
    """Pixels by score, K occupied bins from low to high; a metric is None where a class has no pixels."""

    lower: Tensor  # (K,) float32, least score that falls into the bin
    upper: Tensor  # (K,) float32, greatest one
    pixels: Tensor  # (2, K) int64, normal and defective pixels
    overlap: Tensor  # (K,) int64, sum of region_weights

    def missing(self) -> str | None:
        """Say which class has no pixels, None where both are there."""
        normal, defective = self.pixels.sum(1).tolist()
        if normal + defective == 0:
            return "no pixels"
        return "no defective pixels" if defective == 0 else "no normal pixels" if normal == 0 else None

    def curve(self) -> Curve:
        """What is found as the threshold falls through the bins."""
        fp, tp = self.pixels.flip(1).cumsum(1).double()
        return Curve(tp, fp)

    def auroc(self) -> float | None:
        """Area under the ROC curve; pixels of one bin are tied."""
        return None if self.missing() else self.curve().auroc().item()

    def average_precision(self) -> float | None:
        """Average precision; pixels of one bin are tied."""
        return None if self.missing() else self.curve().average_precision().item()

    def f1_max(self) -> F1Max | None:
        """Best F1 over all thresholds (oracle)."""
        if self.missing():
            return None
        curve = self.curve()
        f1 = curve.f1()
        step = f1.argmax()  # the first of equal ones
        tp, fp = curve.tp[step], curve.fp[step]
        below = self.lower.flip(0)[step].nextafter(torch.tensor(-torch.inf))
        return F1Max(f1[step].item(), below.item(), (tp / (tp + fp)).item(), (tp / curve.tp[-1]).item())

    def aupro(self, limit: float = 0.3) -> float | None:
        """Area under the per-region-overlap curve up to this false positive rate, normalised to 0...1."""
        return None if self.missing() else aupro(self.curve().fp, self.overlap.flip(0).cumsum(0), limit)

    def flagged(self, threshold: float) -> Tensor:
        """Count normal and defective pixels above a threshold (2,) int64; one within a bin leaves that bin out.

        Raises:
            ValueError: the threshold is NaN.
        """
        if math.isnan(threshold):
            raise ValueError("the pixel threshold is NaN: nothing has calibrated it")
        return self.pixels[:, self.lower.double() > threshold].sum(1)

    def iou(self, threshold: float) -> float | None:
        """Intersection over union of `score > threshold` and the mask; None without defective pixels."""
        return iou(self.flagged(threshold), self.pixels.sum(1))

    def quantile(self, share: float, label: int = 0) -> float:
        """Smallest known score that at least this share of a label's pixels does not exceed.

        Raises:
            ValueError: no pixel has this label.
        """
        count = self.pixels[label]
        if not count.any():
            raise ValueError(f"no pixels with label {label} to take a quantile of")
        below = count.cumsum(0)
        wanted = max(share * below[-1].item() * (1 - 1e-12), 1)  # 0.07 * 100 is 7.000...01
        return self.upper[torch.searchsorted(below.double(), wanted)].item()

    def threshold(self, rule: float | str) -> float:
        """Turn a rule (see `ranking.calibrate`) into a threshold on the normal pixels' scores.

        Raises:
            ValueError: the rule is not understood, or there are no normal pixels.
        """
        kind, value = parse_rule(rule)
        if kind == "number":
            return value
        if kind != "sigma" or not self.pixels[0].any():
            return self.quantile({"quantile": value, "fpr": 1 - value}.get(kind, 1.0))
        weight = self.pixels[0] / self.pixels[0].sum().double()
        centre = (self.lower.double() + self.upper.double()) / 2
        mean = (weight * centre).sum()
        return (mean + value * (weight * (centre - mean).square()).sum().sqrt()).item()


def iou(flagged: Tensor, pixels: Tensor) -> float | None:
    """Intersection over union from how many normal and defective pixels are flagged (2,), and there are (2,)."""
    (fp, tp), defective = flagged.tolist(), int(pixels[1])
    return tp / (defective + fp) if defective else None


def pixel_metrics(histogram: Histogram, threshold: float | None) -> tuple[dict[str, float], dict[str, str]]:
    """Compute every pixel metric that the masks allow.

    Args:
        histogram: pixels by score.
        threshold: calibrated on normal pixels; None where there is none.

    Returns:
        The metrics by name, and for each name that is left out the reason why. No value is ever NaN.
    """
    best = histogram.f1_max()
    found = {
        "pixel_auroc": histogram.auroc(),
        "pixel_ap": histogram.average_precision(),
        "pixel_f1_max": best and best.f1,
        "pixel_f1_max_threshold": best and best.threshold,
        "aupro": histogram.aupro(),
        "pixel_iou_calibrated": None if threshold is None else histogram.iou(threshold),
    }
    reasons = {key: histogram.missing() or "" for key, value in found.items() if value is None}
    if threshold is None:
        reasons["pixel_iou_calibrated"] = "no calibrated threshold"
    return {key: value for key, value in found.items() if value is not None}, reasons
