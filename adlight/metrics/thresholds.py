"""Thresholds from the scores of held-out normal images: the methods, and what they gave.

Everywhere, anomalous means `score > threshold`. Letters: N images.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor

from adlight.metrics.histogram import Histogram
from adlight.metrics.image import check_finite
from adlight.metrics.methods import Method, MethodText
from adlight.metrics.pixel import PixelHistogram
from adlight.settings import Share, checked
from adlight.types import UserError

ALL, GIVEN = "all categories", "given"


class Threshold(NamedTuple):
    """Scores above which an image and a pixel are called anomalous; NaN until something calibrates them."""

    image: float = math.nan
    pixel: float = math.nan
    num_normals: int = 0  # validation images that both were calibrated on
    source: str = ALL  # the category of those images, or ALL; GIVEN where both are numbers of the user's
    region: float | None = None  # peaks of regions above it count; None: all regions do


class Calibration:
    """Thresholds for each category, as scores of different categories differ in scale, and for all together.

    Args:
        image: method for the image thresholds. A number is taken as it is; of normal validation scores `quantile:q`
            takes the interpolated quantile, `sigma:k` the mean plus k population standard deviations, `fpr:p` the
            smallest score that at most a share p exceeds, `max` the largest.
        pixel: likewise, of the scores of those images' pixels; quantiles are not interpolated.
        per: `category` compares an image with its own category's thresholds, `all` with those of all together.
        min_area: share of an image's pixels below which a region does not count, unless it is the strongest.

    A region's peak is compared with the largest pixels of the normal images, of which `image` takes the threshold: no
    more normal images show a region than are called anomalous.

    Attributes:
        pooled: found on the normal images of all categories together.
        categories: found on each category's own normal images; a category that had none is missing.

    Raises:
        ValueError: an unknown method or `per`, or a share out of range.
    """

    @checked
    def __init__(
        self,
        image: MethodText = "quantile:0.95",
        pixel: MethodText = "quantile:0.995",
        per: Literal["category", "all"] = "category",
        min_area: Share = 0.0,
    ) -> None:
        self.min_area = min_area
        self.image, self.pixel, self.per = Method.parse(image), Method.parse(pixel), per
        self.reset()

    def reset(self) -> None:
        """Forget what was found; thresholds given as numbers hold all the same."""
        self.pooled = Threshold()
        self.categories: dict[str, Threshold] = {}

    def fit(self, score: Tensor, peak: Tensor, category: Tensor, pixels: PixelHistogram, names: Sequence[str]) -> None:
        """Find the thresholds of each category, and the pooled ones.

        Args:
            score: (N,) scores of normal images.
            peak: (N,) their largest pixels.
            category: (N,) their positions in `names`.
            pixels: the scores of their pixels, one group per category.
            names: the categories.

        Raises:
            UserError: there are no scores for a method to work on.
            ValueError: some scores are NaN or infinite.
        """
        if not len(score) and not (self.image.is_number and self.pixel.is_number):
            raise UserError(
                "no normal image was validated, so there is nothing to calibrate thresholds on: raise val_fraction or "
                "limit_val_batches, or give both thresholds as numbers"
            )
        check_finite(score)
        self.pooled = self._threshold(score, peak, pixels.histogram(), ALL)
        self.categories = {
            name: self._threshold(score[category == group], peak[category == group], pixels.histogram(group), name)
            for group, name in enumerate(names)
            if (category == group).any()
        }

    def _threshold(self, score: Tensor, peak: Tensor, pixels: Histogram, source: str) -> Threshold:
        region = None if self.image.is_number else self.image.of_images(peak)
        return Threshold(self.image.of_images(score), self.pixel.of_pixels(pixels), len(score), source, region)

    @property
    def is_fitted(self) -> bool:
        """Whether there are thresholds."""
        return not math.isnan(sum(self.of(None)[:2]))

    @property
    def by_category(self) -> dict[str, Threshold]:
        """The thresholds that decide for images of a known category; empty where the pooled ones do for all."""
        return self.categories if self.per == "category" else {}

    def of(self, category: str | None) -> Threshold:
        """Look up a category's threshold; the pooled one where it has none of its own, or is not known (None).

        One that is given as a number holds whatever was found.
        """
        found = self.pooled if category is None else self.by_category.get(category, self.pooled)
        image = self.image.value if self.image.is_number else found.image
        pixel = self.pixel.value if self.pixel.is_number else found.pixel
        source = GIVEN if self.image.is_number and self.pixel.is_number else found.source
        region = None if self.image.is_number or self.pixel.is_number else found.region
        return Threshold(image, pixel, found.num_normals, source, region)

    def describe(self, names: Sequence[str]) -> str:
        """Say what the image thresholds of these categories are, and what they were calibrated on."""
        if self.image.is_number:
            return f"{self.image.text} (as given)"
        effective = {name: self.of(name) for name in names}
        if len(set(effective.values())) == 1:
            one = effective[names[0]]
            return f"{one.image:.6g} ({self.image.text} of {one.num_normals} held-out normal images of {one.source})"
        each = (
            f"{name} {one.image:.6g} (of {one.num_normals}{'' if one.source == name else ' of ' + one.source})"
            for name, one in effective.items()
        )
        return f"{self.image.text} of each category's held-out normal images: {', '.join(each)}"

    def as_dict(self) -> dict[str, Any]:
        """Give methods and thresholds as a result's file holds them; what decided stands beside each category."""
        return {
            "threshold_method": self.image.text,
            "pixel_threshold_method": self.pixel.text,
            "threshold_per": self.per,
            "threshold": self.pooled.image,
            "pixel_threshold": self.pooled.pixel,
            "region_threshold": self.pooled.region,
            "thresholds": self.state_dict()["categories"],
        }

    def state_dict(self) -> dict[str, Any]:
        """Give the thresholds as plain dicts, strings and numbers, which a checkpoint and JSON can hold."""
        named = {name: threshold._asdict() for name, threshold in self.categories.items()}
        return {"pooled": self.pooled._asdict(), "categories": named}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take thresholds from `state_dict`; the methods and `per` stay."""
        self.pooled = Threshold(**state["pooled"])
        self.categories = {name: Threshold(**values) for name, values in state["categories"].items()}
