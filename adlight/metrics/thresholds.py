"""Calibrated thresholds: a pair a category, as scores of different categories differ in scale, and one for all."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from adlight.metrics.image import calibrate
from adlight.metrics.pixel import PixelHistogram

ALL = "all categories"


class Threshold(NamedTuple):
    """Raw scores above which an image and a pixel are called anomalous; NaN where nothing has calibrated them."""

    image: float = math.nan
    pixel: float = math.nan
    num_normals: int = 0  # validation images that both were calibrated on
    source: str = ALL  # the category that those images are of, or ALL


NOT_CALIBRATED = Threshold()


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of a model.

    Attributes:
        pooled: calibrated on the normal images of all categories together.
        categories: each on its category's own normal images; a category that had none is missing.
    """

    pooled: Threshold = NOT_CALIBRATED
    categories: dict[str, Threshold] = field(default_factory=dict)

    def of(self, category: str | None) -> Threshold:
        """A category's own threshold; the pooled one where it has none, or where the category is not known."""
        return self.pooled if category is None else self.categories.get(category, self.pooled)

    def state(self) -> dict[str, Any]:
        """Plain dicts, strings and numbers, which a checkpoint and JSON can hold."""
        named = {name: threshold._asdict() for name, threshold in self.categories.items()}
        return {"pooled": self.pooled._asdict(), "categories": named}

    @staticmethod
    def from_state(state: dict[str, Any]) -> "Thresholds":
        """The inverse of `state`."""
        named = {name: Threshold(**values) for name, values in state["categories"].items()}
        return Thresholds(Threshold(**state["pooled"]), named)


def calibrate_all(
    score: Tensor,
    category: Tensor,
    pixels: PixelHistogram,
    names: Sequence[str],
    rule: float | str,
    pixel_rule: float | str,
) -> Thresholds:
    """Calibrate a threshold a category, and the pooled one.

    Args:
        score: (N,) scores of normal images.
        category: (N,) their places in `names`.
        pixels: the scores of their pixels, a group a category.
        names: the categories.
        rule: of the image thresholds, see `ranking.calibrate`.
        pixel_rule: of the pixel thresholds.

    Raises:
        ValueError: no scores at all to apply a rule to.
    """

    def threshold(mine: Tensor, group: int | None, name: str) -> Threshold:
        pixel = pixels.histogram(group).threshold(pixel_rule)
        return Threshold(calibrate(mine, rule), pixel, len(mine), name)

    parts = {name: score[category == group] for group, name in enumerate(names)}
    own = {name: threshold(mine, group, name) for group, (name, mine) in enumerate(parts.items()) if len(mine)}
    return Thresholds(threshold(score, None, ALL), own)
