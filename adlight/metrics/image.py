"""How well scores rank anomalous above normal: the image metrics, and thresholds from normal scores.

Scores are any finite real numbers, larger is more anomalous, and nothing squashes them: torchmetrics' AUROC
puts a sigmoid over scores outside [0, 1], which ties scores near 50 and 60 (torchmetrics #2337). Ties count
as in scikit-learn. Everywhere, anomalous means `score > threshold`. Letters: N scores, K distinct scores.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from adlight.metrics.curve import Curve, NonFiniteScore, checked, missing_class

BOTH_CLASSES = (  # in the order in which image_metrics computes them
    *("auroc", "ap", "f1_max", "f1_max_threshold", "precision_at_f1_max", "recall_at_f1_max"),
    *("fpr_at_95_tpr", "trivial_f1"),
)
RULES = "a number, `quantile:0.99`, `sigma:3`, `fpr:0.05` or `max`"
CALIBRATED = ("precision_calibrated", "recall_calibrated", "f1_calibrated", "fpr_calibrated")


class F1Max(NamedTuple):
    """Best F1 over all thresholds, chosen with the labels in hand: an oracle, not a result one can deploy.

    The threshold is the largest score left out, so that `score > threshold` gives this F1 in float32 too.
    """

    f1: float
    threshold: float
    precision: float
    recall: float


class Decision(NamedTuple):
    """What one threshold does; None where the images lack the class that the figure speaks of."""

    precision: float | None
    recall: float | None
    f1: float | None
    fpr: float | None


def _curve(score: Tensor, label: Tensor) -> tuple[Tensor, Curve]:
    """Return the distinct scores, falling (K,), and their curve.

    Raises:
        ValueError: a class is missing, a score is not finite, a label is neither 0 nor 1, or shapes differ.
    """
    score, label = checked(score, label)
    if missing := missing_class(label):
        raise ValueError(f"ranking needs both classes: {missing}")
    value, place = score.unique(return_inverse=True)
    tp, fp = (torch.bincount(place[c], minlength=len(value)).flip(0).cumsum(0).double() for c in (label, ~label))
    return value.flip(0), Curve(tp, fp)


def roc_curve(score: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """False and true positive rates (K + 1,) from (0, 0) to (1, 1), a point a distinct score; as `auroc` takes them."""
    curve = _curve(score, label)[1]
    fpr, tpr = (pad(count / count[-1], (1, 0)) for count in (curve.fp, curve.tp))
    return fpr, tpr


def auroc(score: Tensor, label: Tensor) -> float:
    """Area under the ROC curve of scores (N,) with labels 0/1 (N,)."""
    return _curve(score, label)[1].auroc().item()


def average_precision(score: Tensor, label: Tensor) -> float:
    """Average precision of scores (N,) with labels 0/1 (N,); scikit-learn's, no interpolation."""
    return _curve(score, label)[1].average_precision().item()


def fpr_at_tpr(score: Tensor, label: Tensor, tpr: float = 0.95) -> float:
    """Smallest share of normal images flagged while a share `tpr` of the anomalous ones is found."""
    return _curve(score, label)[1].fpr_at_tpr(tpr).item()


def f1_max(score: Tensor, label: Tensor) -> F1Max:
    """Best F1 over all thresholds (oracle); of equal ones the highest threshold."""
    value, (tp, fp) = _curve(score, label)
    f1 = Curve(tp, fp).f1()
    step = f1.argmax()  # the first of equal ones
    last = value[step].item()
    below = value[step + 1].item() if step + 1 < len(value) else last - 1e-6 * max(abs(last), 1.0)
    return F1Max(f1[step].item(), below, (tp[step] / (tp[step] + fp[step])).item(), (tp[step] / tp[-1]).item())


def trivial_f1(label: Tensor) -> float:
    """F1 of calling everything anomalous; high on a test set rich in anomalies, where less means little."""
    share = label.double().mean().item()
    return 2 * share / (1 + share)


def at_threshold(score: Tensor, label: Tensor, threshold: float | Tensor) -> Decision:
    """Precision, recall, F1, FPR of calling `score > threshold` anomalous; precision is 0 if nothing is.

    Args:
        score: (N,) any finite real numbers.
        label: (N,) 0 normal, 1 anomalous.
        threshold: one for all images, or each image's own (N,) float64.
    """
    score, label = checked(score, label)
    if torch.as_tensor(threshold).isnan().any():
        raise ValueError("the threshold is NaN: nothing has calibrated it")
    flagged = score > threshold
    tp, fp = (flagged & label).sum().item(), (flagged & ~label).sum().item()
    anomalous, normal = label.sum().item(), (~label).sum().item()
    both = anomalous and normal
    return Decision(
        precision=tp / max(tp + fp, 1) if both else None,
        recall=tp / anomalous if anomalous else None,
        f1=2 * tp / (tp + fp + anomalous) if both else None,
        fpr=fp / normal if normal else None,
    )


def image_metrics(
    score: Tensor, label: Tensor, threshold: float | Tensor | None
) -> tuple[dict[str, float], dict[str, str]]:
    """Compute every image metric that the images allow.

    Args:
        score: (N,) any finite real numbers.
        label: (N,) 0 normal, 1 anomalous.
        threshold: calibrated on normal images, one or each image's own (N,); None where there is none.

    Returns:
        The metrics by name, and for each name that is left out the reason why. No value is ever NaN.

    Raises:
        NonFiniteScore: some scores are NaN or infinite.
    """
    score, label = checked(score, label)
    missing = missing_class(label)
    found: dict[str, float | None] = {}
    if missing is None:
        areas = auroc(score, label), average_precision(score, label)
        rest = *f1_max(score, label), fpr_at_tpr(score, label, 0.95), trivial_f1(label)
        found = dict(zip(BOTH_CLASSES, (*areas, *rest), strict=True))
    if threshold is not None:
        found |= zip(CALIBRATED, at_threshold(score, label, threshold), strict=True)
    values = {key: value for key, value in found.items() if value is not None}
    reasons = dict.fromkeys(BOTH_CLASSES + CALIBRATED, missing or "")
    if threshold is None:
        reasons |= dict.fromkeys(CALIBRATED, "no calibrated threshold")
    return values, {key: reason for key, reason in reasons.items() if key not in values}


class Rule(NamedTuple):
    """A threshold rule taken apart: `kind` is number, quantile, sigma, fpr or max; `value` is 0 for max."""

    kind: str
    value: float


def parse_rule(rule: float | str) -> Rule:
    """Read a rule such as `quantile:0.99`.

    Raises:
        ValueError: the rule is none of the accepted forms; the text names both.
    """
    kind, colon, text = str(rule).strip().partition(":")
    if (kind, colon) == ("max", ""):
        return Rule("max", 0.0)
    kind, text, known = (kind, text, kind in ("quantile", "sigma", "fpr")) if colon else ("number", kind, True)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not known or not math.isfinite(value) or (kind in ("quantile", "fpr") and not 0 <= value <= 1):
        raise ValueError(f"threshold rule {rule!r} is not understood; write {RULES} (shares lie in 0...1)")
    return Rule(kind, value)


def calibrate(normal_scores: Tensor, rule: float | str) -> float:
    """Turn a rule into a threshold; anomalous then means `score > threshold`.

    Args:
        normal_scores: (N,) scores of normal images, any finite real numbers.
        rule: a number (taken as it is, no score is needed); `quantile:q`, interpolated; `sigma:k`,
            mean + k population standard deviations; `fpr:p`, the smallest score that at most a share p of the
            scores exceeds; `max`.

    Raises:
        ValueError: the rule is not understood, or there are no scores to apply it to.
        NonFiniteScore: some scores are NaN or infinite.
    """
    kind, value = parse_rule(rule)
    if kind == "number":
        return value
    if normal_scores.numel() == 0:
        raise ValueError(f"threshold rule {rule!r} needs normal scores, and there are none")
    score = normal_scores.detach().flatten().cpu().double().sort().values
    if not score.isfinite().all():
        raise NonFiniteScore((~normal_scores.flatten().isfinite()).nonzero().flatten().tolist())
    if kind == "quantile":
        return score.quantile(value).item()
    if kind == "sigma":
        return (score.mean() + value * score.std(correction=0)).item()
    above = math.floor(value * len(score) + 1e-9) if kind == "fpr" else 0  # 0.29 * 100 is 28.999...
    return score[max(len(score) - 1 - above, 0)].item()
