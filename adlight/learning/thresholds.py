"""Find thresholds from labelled images for a target recall or precision, and describe how well labels support them.

If n labelled defects and a new one are exchangeable, the new score exceeds the k-th smallest of the n with a
probability of at least 1 - k / (n + 1) (split conformal prediction, see `metrics.methods`), provided that no image is
scored by a head fitted to it. An image is anomalous if `score > threshold`.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple, cast

import torch
from torch import Tensor

from adlight.detection.module import AnomalyModule
from adlight.learning.calibration import LabelledCalibration
from adlight.learning.detector import LearnedDetector
from adlight.learning.samples import Labelled
from adlight.types import UserError

CONFIDENCE = 0.95


class Support(NamedTuple):
    """A threshold, and a description of the labels behind it."""

    threshold: float
    text: str


def recall_threshold(score: Tensor, recall: float) -> Support:
    """Find the highest threshold that a new defect exceeds with a probability of at least `recall`, in (0, 1).

    With too few scores (n,) of labelled defects, the threshold is just below the lowest score.

    Raises:
        UserError: there is no labelled defect.
    """
    count, asked = len(score), Fraction(str(recall))
    if not count:
        raise UserError(f"recall={recall} needs labelled defects, and there are none: label some, or leave recall out")
    rank = math.floor((count + 1) * (1 - asked))
    promised = float(1 - Fraction(max(rank, 1), count + 1))
    ordered = score.float().sort().values
    if rank:
        return Support(ordered[rank - 1].item(), f"of {count} labelled defects: at least {promised:.3g} of new ones")
    lowest = torch.nextafter(ordered[0], ordered[0].new_tensor(-torch.inf)).item()
    needed = math.ceil(1 / (1 - asked)) - 1
    limit = f"of {count} labelled defects, which can promise no more than {promised:.3g}: below the lowest score"
    return Support(lowest, f"{limit}; {needed} are needed")


def precision_threshold(score: Tensor, label: Tensor, precision: float) -> Support:
    """Find the lowest threshold above which a share `precision` of the labelled images are defects.

    Scores (n,) have labels (n,): 0 normal, 1 defect. The precision on new images is the same only if they contain the
    same share of defects as the labelled ones.

    Raises:
        UserError: there are no labelled defects or no labelled normal images, or no threshold reaches the target.
    """
    defects, normals = int(label.sum()), int((label == 0).sum())
    if not defects or not normals:
        counts = f"labelled defects ({defects}) and normal images ({normals})"
        raise UserError(f"precision={precision} needs {counts}: label more, or leave precision out")
    value, place = score.float().unique(return_inverse=True)  # rising
    true, called = (
        torch.bincount(place, weights, len(value)).flip(0).cumsum(0).flip(0)
        for weights in (label.double(), torch.ones_like(label, dtype=torch.double))
    )  # number of defects and of images at or above each score
    reached = (true / called >= precision).nonzero()[:, 0]
    if not len(reached):
        best = float((true / called).max())
        raise UserError(f"precision={precision} is not reached: the best of {defects} + {normals} labels is {best:.3g}")
    at = int(reached[0])
    below = value[at - 1] if at else torch.nextafter(value[0], value.new_tensor(-torch.inf))
    hits, total = int(true[at]), int(called[at])
    found = f"{hits} of {total} labelled images above it are defects"
    return Support(below.item(), f"{found}: at least {lower_bound(hits, total):.3g}, with {CONFIDENCE:.0%} confidence")


def lower_bound(hits: int, total: int) -> float:
    """Return the one-sided lower confidence bound of a share (Clopper & Pearson 1934): 0.05^(1 / n) for n of n."""
    from scipy.stats import beta

    return float(beta.ppf(1 - CONFIDENCE, hits, total - hits + 1)) if hits else 0.0


def find_thresholds(
    learned: LearnedDetector,
    labelled: Sequence[Labelled],
    unseen: Tensor,
    recall: float | None,
    precision: float | None,
) -> list[str]:
    """Set image thresholds for a target recall or precision in each category with enough labels. -> a description.

    `unseen` (n,) are the scores of the labelled images by heads that have not seen them. At most one target is set.

    Raises:
        UserError: no category has enough labels.
    """
    if recall is None and precision is None:
        return []
    by_category = learned.calibration.per == "category"
    group = [(image.category or None) if by_category else None for image in labelled]
    label = torch.tensor([image.label for image in labelled])
    target = f"recall={recall}" if precision is None else f"precision={precision}"
    thresholds, lines, errors = dict[str | None, float](), list[str](), list[UserError]()
    for category in dict.fromkeys(group):
        mine = torch.tensor([name == category for name in group])
        score, own = unseen[mine], label[mine]
        try:
            if precision is None:
                support = recall_threshold(score[own == 1], cast(float, recall))
            else:
                support = precision_threshold(score, own, precision)
        except UserError as error:
            errors.append(error)
            continue
        thresholds[category] = support.threshold
        lines.append(f"{target} for {category or 'all'}: {support.threshold:.6g} {support.text}")
    if not thresholds:
        raise errors[0]
    cast(LabelledCalibration, learned.calibration).set_image_thresholds(thresholds, target)
    return [*lines, *(f"a category keeps its threshold: {error}" for error in errors)]


def describe_labels(labelled: Sequence[Labelled]) -> list[str]:
    """Return lines with the numbers of labels by category."""
    lines = []
    for category in sorted({image.category for image in labelled}):
        mine = [image for image in labelled if image.category == category]
        defects, masks = sum(image.label for image in mine), sum(image.covered is not None for image in mine)
        counts = f"{defects} labelled defects ({masks} with masks), {len(mine) - defects} normal"
        lines.append(f"{category or 'all'}: {counts}")
    return lines


def describe_decisions(
    module: AnomalyModule, learned: LearnedDetector, labelled: Sequence[Labelled], unseen: Tensor
) -> list[str]:
    """Return lines with the numbers of labelled images called anomalous before and after learning."""
    lines = []
    for label, name in ((1, "defects"), (0, "normal images")):
        rows = [(image, new) for image, new in zip(labelled, unseen.tolist(), strict=True) if image.label == label]
        before = sum(image.score > module.calibration.of(image.category or None).image for image, _ in rows)
        after = sum(new > learned.calibration.of(image.category or None).image for image, new in rows)
        lines += [f"labelled {name} called anomalous: {before} of {len(rows)} before, {after} now"] if rows else []
    return lines
