"""Thresholds from the scores of held-out normal images: the methods, and what they gave.

Everywhere, anomalous means `score > threshold`. Letters: N images.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import NonNegativeInt

from adlight.metrics.methods import Method, MethodText
from adlight.settings import Closing, Share, checked
from adlight.types import UserError

if TYPE_CHECKING:  # torch takes seconds, and thresholds are compared without it
    from torch import Tensor

    from adlight.metrics.histogram import Histogram
    from adlight.metrics.pixel import PixelHistogram

ALL, GIVEN = "all categories", "given"


class Threshold(NamedTuple):
    """Scores above which an image and a pixel are called anomalous; NaN until something calibrates them."""

    image: float = math.nan
    pixel: float = math.nan
    num_normals: int = 0  # images that both were calibrated on
    source: str = ALL  # the category of those images, or ALL; GIVEN where both are numbers of the user's
    region: float | None = None  # peaks of regions above it count; None: all regions do
    cross_fitted: int = 0  # so many of those images are training images, scored by cross-fitting


class Calibration:
    """Thresholds for each category, as scores of different categories differ in scale, and for all together.

    Args:
        image: method for the image thresholds. A number is taken as it is; of n normal validation scores `fpr:p` takes
            the ceil((n + 1)(1 - p))-th smallest, which a new normal image exceeds with probability p at most (see
            `metrics.methods`), `quantile:q` the same for 1 - q, `max` the largest, `sigma:k` mean + k deviations.
        pixel: likewise, of the scores of those images' pixels: `fpr:p` is what a share p of them exceeds. That is no
            promise, as the pixels of an image are alike.
        per: `category` compares an image with its category's thresholds, `all` with those of all together.
        min_area: share of an image's pixels below which a region does not count, unless it is the strongest.
        closing: gaps into which no disk of this radius fits are closed before; in pixels of the anomaly map.
        folds: of the training images, which join the held-out ones by `detection.crossfitting`; 0 or 1: they do not.

    A region's peak is compared with what `image` gives for the largest pixels of the normal images.

    Attributes:
        pooled: found on the normal images of all categories together.
        categories: found on each category's own normal images; a category that had none is missing.
        scores: of those images, by category, which drift is measured by.

    Raises:
        ValueError: an unknown method or `per`, or a number out of range.
    """

    @checked
    def __init__(
        self,
        image: MethodText = "fpr:0.05",
        pixel: MethodText = "quantile:0.995",
        per: Literal["category", "all"] = "category",
        min_area: Share = 0.0,
        closing: Closing = 0.0,
        folds: NonNegativeInt = 5,
    ) -> None:
        self.image, self.pixel, self.per = Method.parse(image), Method.parse(pixel), per
        self.min_area, self.closing, self.folds = min_area, closing, folds
        self.reset()

    def reset(self) -> None:
        """Forget what was found; thresholds given as numbers hold all the same."""
        self.pooled, self.scores = Threshold(), dict[str, list[float]]()
        self.categories: dict[str, Threshold] = {}

    def fit(
        self,
        score: "Tensor",
        peak: "Tensor",
        category: "Tensor",
        pixels: "PixelHistogram",
        names: Sequence[str],
        cross_fitted: "Tensor | None" = None,
    ) -> None:
        """Find the thresholds of each category, and the pooled ones.

        Args:
            score: (N,) of normal images.
            peak: (N,) largest pixels of their maps.
            category: (N,) positions in `names`.
            pixels: the scores of their pixels, one group per category.
            names: the categories.
            cross_fitted: (N,) bool, scored by cross-fitting; None: none was.

        Raises:
            UserError, ValueError: there are no scores for a method to work on, or some are not finite.
        """
        from adlight.metrics.image import check_finite

        if not len(score) and not (self.image.is_number and self.pixel.is_number):
            raise UserError(
                "no normal image was validated, so there is nothing to calibrate thresholds on: raise val_fraction or "
                "limit_val_batches, or give both thresholds as numbers"
            )
        check_finite(score)
        known = category < 0 if cross_fitted is None else cross_fitted

        def find(mine: "Tensor", histogram: "Histogram", source: str) -> Threshold:
            image, pixel = self.image.of_images(score[mine]), self.pixel.of_pixels(histogram)
            region = None if self.image.is_number else self.image.of_images(peak[mine])
            return Threshold(image, pixel, int(mine.sum()), source, region, int(known[mine].sum()))

        self.pooled = find(category >= 0, pixels.histogram(), ALL)
        groups = {name: group for group, name in enumerate(names) if (category == group).any()}
        self.categories = {name: find(category == k, pixels.histogram(k), name) for name, k in groups.items()}
        self.scores = {name: score[category == k].tolist() for name, k in groups.items()}

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
        return found._replace(image=image, pixel=pixel, source=source, region=region)

    def describe(self, names: Sequence[str]) -> str:
        """Say what the image thresholds of these categories are, of which images, and what they promise."""
        if self.image.is_number:
            return f"{self.image.text} (as given)"
        effective = {name: self.of(name) for name in names}
        held_out = "" if any(one.cross_fitted for one in effective.values()) else "held-out "
        if len(set(effective.values())) == 1:
            one = effective[names[0]]
            of = [f"{one.num_normals} {held_out}normal images of {one.source}", *self._remarks(one)]
            return f"{one.image:.6g} ({self.image.text} of {', '.join(of)})"
        each = []
        for name, one in effective.items():
            of = [f"{one.num_normals}{'' if one.source == name else ' of ' + one.source}", *self._remarks(one)]
            each.append(f"{name} {one.image:.6g} (of {', '.join(of)})")
        return f"{self.image.text} of each category's {held_out}normal images: {', '.join(each)}"

    def _remarks(self, one: Threshold) -> Iterator[str]:
        """Say how many images were cross-fitted, and which false alarm rate all of them promise."""
        if one.cross_fitted:
            yield f"{one.cross_fitted} cross-fitted"
        promised = self.image.promised(one.num_normals)
        if self.image.falls_short(one.num_normals):
            yield f"which can promise no less than {promised:.3g}: the largest score; {self.image.needed} are needed"
        elif promised is not None:
            yield f"false alarms {'about' if one.cross_fitted else 'at most'} {promised:.3g}"

    def as_dict(self) -> dict[str, Any]:
        """Give methods and thresholds as a result's file holds them; what decided stands beside each category.

        `promised_fpr` is the share of normal images that the threshold calls anomalous at most, on average over
        calibrations, or about that with `cross_fitted` images; `needed_normals` are what the method's own share takes.
        """
        promised = self.image.promised
        categories = self.state_dict()["categories"].items()
        return {
            **{"threshold_method": self.image.text, "pixel_threshold_method": self.pixel.text},
            "threshold_per": self.per,
            "threshold": self.pooled.image,
            "pixel_threshold": self.pooled.pixel,
            "region_threshold": self.pooled.region,
            **{"promised_fpr": promised(self.pooled.num_normals), "needed_normals": self.image.needed},
            "thresholds": {n: one | {"promised_fpr": promised(one["num_normals"])} for n, one in categories},
        }

    def state_dict(self) -> dict[str, Any]:
        """Give the thresholds as plain dicts, strings and numbers, which a checkpoint and JSON can hold."""
        named = {name: threshold._asdict() for name, threshold in self.categories.items()}
        return {"pooled": self.pooled._asdict(), "categories": named, "scores": self.scores}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take thresholds from `state_dict`; the methods and `per` stay."""
        for one in (state["pooled"], *state["categories"].values()):
            math.fsum((one["image"], one["pixel"]))  # a TypeError, where one is no number
        self.pooled, self.scores = Threshold(**state["pooled"]), dict(state.get("scores", {}))
        self.categories = {name: Threshold(**values) for name, values in state["categories"].items()}
