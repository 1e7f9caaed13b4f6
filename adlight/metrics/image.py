"""Image metrics: how well scores rank anomalous above normal images, and the errors at a given threshold.

Scores are any finite real numbers; higher is more anomalous. They are not transformed: torchmetrics' AUROC applies a
sigmoid to scores outside [0, 1], which ties scores near 50 and 60 (torchmetrics #2337). Ties are treated as in
scikit-learn. Anomalous always means `score > threshold`. Letters: N scores, K distinct scores.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

RANKING = ("auroc", "ap", "f1_max", "f1_max_threshold", "precision_at_f1_max", "recall_at_f1_max", "fpr_at_95_tpr")
CALIBRATED = ("precision_calibrated", "recall_calibrated", "f1_calibrated", "fpr_calibrated")


class ConfusionCounts(NamedTuple):
    """True and false positives as the threshold falls, one step per distinct score, for all ranking metrics.

    Leading dimensions are resamples.
    """

    tp: Tensor  # (..., K) float64, anomalous items at or above the step's score
    fp: Tensor  # (..., K) float64, normal items at or above the step's score

    def auroc(self) -> Tensor:
        """Compute the area under the ROC curve by trapezoids, so that a tie counts half. -> (...,)."""
        first = self.tp[..., 0] * self.fp[..., 0] / 2  # from (0, 0)
        return (first + torch.trapezoid(self.tp, self.fp)) / (self.tp[..., -1] * self.fp[..., -1])

    def average_precision(self) -> Tensor:
        """Sum precision over the steps in recall, without interpolation. -> (...,)."""
        precision = self.tp / (self.tp + self.fp).clamp(min=1)  # a resample may have no image in the first steps
        return (pad(self.tp, (1, 0)).diff() * precision).sum(-1) / self.tp[..., -1]

    def f1(self) -> Tensor:
        """Compute F1 at every step. -> (..., K)."""
        return 2 * self.tp / (self.tp + self.fp + self.tp[..., -1:])

    def fpr_at_tpr(self, tpr: float) -> Tensor:
        """Compute the false positive rate at the first step that reaches a true positive rate. -> (...,)."""
        reached = self.tp / self.tp[..., -1:] >= tpr
        return (self.fp / self.fp[..., -1:]).gather(-1, reached.int().argmax(-1, keepdim=True)).squeeze(-1)

    def ranking(self, threshold: Tensor) -> dict[str, float]:
        """Compute the metrics `RANKING` from counts without resamples; `score > threshold[k]` flags step k.

        `f1_max` is the best F1, at the highest threshold that reaches it. Because labels choose the threshold, it is an
        oracle, not a deployable result.
        """
        f1 = self.f1()
        best = f1.argmax()  # the first maximum
        tp, fp = self.tp[best], self.fp[best]
        at_best = f1[best], threshold[best], tp / (tp + fp), tp / self.tp[-1]
        values = self.auroc(), self.average_precision(), *at_best, self.fpr_at_tpr(0.95)
        return {name: value.item() for name, value in zip(RANKING, values, strict=True)}


def count_confusion(score: Tensor, label: Tensor) -> tuple[Tensor, ConfusionCounts]:
    """Count true and false positives of scores (N,) with labels 0/1 (N,), at all distinct scores in descending order.

    Returns:
        Thresholds (K,) for `ranking`, and the counts. A threshold is the next lower score, which also works in float32.

    Raises:
        ValueError: a class is missing, a score is not finite, a label is neither 0 nor 1, or the shapes differ.
    """
    score, label = check_scores(score, label)
    if missing := missing_class(int((~label).sum()), int(label.sum())):
        raise ValueError(f"ranking needs both classes: {missing}")
    value, step = score.unique(return_inverse=True)
    tp, fp = (torch.bincount(step[c], minlength=len(value)).flip(0).cumsum(0).double() for c in (label, ~label))
    below_all = value[:1] - 1e-6 * value[:1].abs().clamp(min=1)
    return torch.cat([below_all, value[:-1]]).flip(0), ConfusionCounts(tp, fp)


def auroc(score: Tensor, label: Tensor) -> float:
    """Compute the area under the ROC curve of scores (N,) with labels 0/1 (N,)."""
    return count_confusion(score, label)[1].auroc().item()


def roc_curve(score: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the ROC curve: false and true positive rates (K + 1,) from (0, 0) to (1, 1), one per distinct score."""
    _, counts = count_confusion(score, label)
    return pad(counts.fp / counts.fp[-1], (1, 0)), pad(counts.tp / counts.tp[-1], (1, 0))


def image_metrics(
    score: Tensor, label: Tensor, threshold: float | Tensor | None
) -> tuple[dict[str, float], dict[str, str]]:
    """Compute all image metrics that are defined for scores (N,) with labels 0/1 (N,).

    `trivial_f1` is the F1 of calling every image anomalous; if most test images are anomalous, it is high, and F1 means
    little. The calibrated threshold is a number, or one per image (N,); None without a threshold.

    Returns:
        The metrics by name, and the reasons why others are left out, by name. No value is NaN.

    Raises:
        ValueError: a score is not finite, a threshold is NaN, a label is neither 0 nor 1, or the shapes differ.
    """
    score, label = check_scores(score, label)
    anomalous, normal = int(label.sum()), int((~label).sum())
    missing = missing_class(normal, anomalous)
    metrics, reasons = dict[str, float](), dict[str, str]()
    if missing is None:
        thresholds, counts = count_confusion(score, label)
        share = anomalous / len(label)
        metrics |= counts.ranking(thresholds) | {"trivial_f1": 2 * share / (1 + share)}
    else:
        reasons |= dict.fromkeys((*RANKING, "trivial_f1"), missing)
    if threshold is None:
        return metrics, reasons | dict.fromkeys(CALIBRATED, "no calibrated threshold")
    calibrated = _at_threshold(score, label, threshold)
    return metrics | calibrated, reasons | {name: missing or "" for name in CALIBRATED if name not in calibrated}


def _at_threshold(score: Tensor, label: Tensor, threshold: float | Tensor) -> dict[str, float]:
    """Compute the metrics `CALIBRATED` that are defined for the labels."""
    if torch.as_tensor(threshold).isnan().any():
        raise ValueError("the threshold is NaN: it was not calibrated")
    flagged = score > threshold
    tp, fp = (flagged & label).sum().item(), (flagged & ~label).sum().item()
    anomalous, normal = label.sum().item(), (~label).sum().item()
    metrics = {}
    if anomalous and normal:
        metrics["precision_calibrated"] = tp / max(tp + fp, 1)  # 0 if nothing is flagged
    if anomalous:
        metrics["recall_calibrated"] = tp / anomalous
    if anomalous and normal:
        metrics["f1_calibrated"] = 2 * tp / (tp + fp + anomalous)
    if normal:
        metrics["fpr_calibrated"] = fp / normal
    return metrics


def check_finite(score: Tensor) -> None:
    """Raise a ValueError that names the indices of scores (N,) that are NaN or infinite."""
    if not score.isfinite().all():
        raise ValueError(f"scores at positions {(~score.isfinite()).nonzero().flatten().tolist()} are not finite")


def check_scores(score: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Convert scores to float64 and labels to bool, both (N,) on the CPU; see `count_confusion` for errors."""
    if score.ndim != 1 or score.shape != label.shape:
        raise ValueError(f"score {tuple(score.shape)} and label {tuple(label.shape)} must be 1-D and of equal length")
    score, label = score.detach().cpu().double(), label.detach().cpu()
    check_finite(score)
    if not ((label == 0) | (label == 1)).all():
        raise ValueError(f"labels must be 0 or 1, got {label.unique().tolist()}")
    return score, label.bool()


def missing_class(normal: int, anomalous: int, unit: str = "images") -> str | None:
    """Name the empty class, given the numbers of normal and anomalous items; None if both have some."""
    if normal and anomalous:
        return None
    return f"no {unit}" if normal == anomalous else f"no {'normal' if anomalous else 'anomalous'} {unit}"
