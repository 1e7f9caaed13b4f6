"""What follows from labelled images: thresholds that they support, and how many are decided rightly."""

from collections.abc import Sequence

import torch
from torch import Tensor

from adlight.detection.module import AnomalyModule
from adlight.learning.calibration import LabelledCalibration
from adlight.learning.detector import LearnedDetector
from adlight.learning.samples import Labelled
from adlight.learning.thresholds import precision_threshold, recall_threshold
from adlight.types import UserError


def find_thresholds(
    learned: LearnedDetector,
    labelled: Sequence[Labelled],
    unseen: Tensor,
    recall: float | None,
    precision: float | None,
) -> list[str]:
    """Find the image thresholds that labels support, category by category, and say of how many.

    Raises:
        UserError: no category has the labels that it takes.
    """
    if recall is None and precision is None:
        return []
    name, value = ("recall", recall) if recall is not None else ("precision", precision)
    by_category = learned.calibration.per == "category"
    group = [(one.category or None) if by_category else None for one in labelled]
    label, found, said = torch.tensor([one.label for one in labelled]), dict[str | None, float](), list[str]()
    errors = list[UserError]()
    for category in dict.fromkeys(group):
        mine = torch.tensor([one == category for one in group])
        score, own = unseen[mine], label[mine]
        try:
            of = recall_threshold(score[own == 1], value) if recall else precision_threshold(score, own, value)  # type: ignore[arg-type]
        except UserError as error:
            errors.append(error)
            continue
        found[category] = of.threshold
        said.append(f"{name}={value} for {category or 'all'}: {of.threshold:.6g} {of.text}")
    if not found:
        raise errors[0]
    assert isinstance(learned.calibration, LabelledCalibration)
    learned.calibration.take(found, f"{name}={value}")
    return [*said, *(f"not for a category: {error}" for error in errors)]


def describe_labels(labelled: Sequence[Labelled]) -> list[str]:
    """Count the labels by category."""
    lines = []
    for category in sorted({one.category for one in labelled}):
        mine = [one for one in labelled if one.category == category]
        defects, masks = sum(one.label for one in mine), sum(one.covered is not None for one in mine)
        lines.append(
            f"{category or 'all'}: {defects} labelled defects ({masks} with masks), {len(mine) - defects} normal"
        )
    return lines


def describe_decisions(
    module: AnomalyModule, learned: LearnedDetector, labelled: Sequence[Labelled], unseen: Tensor
) -> list[str]:
    """Count the labelled images that are called anomalous, before and after."""
    lines = []
    for label, name in ((1, "defects"), (0, "normal images")):
        rows = [(one, new) for one, new in zip(labelled, unseen.tolist(), strict=True) if one.label == label]
        before = sum(one.score > module.calibration.of(one.category or None).image for one, _ in rows)
        after = sum(new > learned.calibration.of(one.category or None).image for one, new in rows)
        lines += [f"labelled {name} called anomalous: {before} of {len(rows)} before, {after} now"] if rows else []
    return lines
