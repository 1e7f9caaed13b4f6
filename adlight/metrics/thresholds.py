"""Thresholds calibrated on N held-out normal images; anomalous always means `score > threshold`."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import NonNegativeInt

from adlight.metrics.methods import Method, MethodText
from adlight.settings import Closing, Share, checked
from adlight.types import UserError

if TYPE_CHECKING:  # importing torch takes seconds, and comparing with thresholds does not need it
    from torch import Tensor

    from adlight.metrics.histogram import Histogram
    from adlight.metrics.pixel import PixelHistogram

ALL, GIVEN = "all categories", "given"


class Threshold(NamedTuple):
    """Scores above which an image or a pixel is anomalous; NaN before calibration."""

    image: float = math.nan
    pixel: float = math.nan
    num_normals: int = 0  # number of normal images on which both were calibrated
    source: str = ALL  # category of these images, or ALL; GIVEN if the user set both thresholds
    region: float | None = None  # a region counts if its peak is higher; None if all regions count
    cross_fitted: int = 0  # number of these images that are training images, scored by cross-fitting


class Calibration:
    """Calibrates thresholds per category, because scores differ in scale, and for all categories together.

    Args:
        image: method for the image thresholds: a number, which is used directly; `fpr:p`, the ceil((n + 1)(1 - p))-th
            smallest of n normal validation scores, which a new normal image exceeds with probability at most p (see
            `metrics.methods`); `quantile:q`, the same as `fpr:1-q`; `max`, the largest; `sigma:k`, mean + k deviations.
        pixel: method for the pixel thresholds, applied to the pixel scores of these images: `fpr:p` is the score that a
            fraction p of them exceeds. It guarantees nothing, because the pixels of an image are dependent.
        per: `category` compares an image with its category's thresholds, `all` with the pooled thresholds.
        min_area: smallest area of a region, as a fraction of the image's pixels; the strongest region always counts.
        closing: before that, gaps too narrow for a disk of this radius, in pixels of the anomaly map, are closed.
        folds: number of folds in which training images are cross-fitted (see `detection.crossfitting`) to calibrate
            together with the held-out images; 0 or 1 uses the held-out images alone.

    A region counts if its peak exceeds the threshold that `image` yields for the peaks of normal images.

    Attributes:
        pooled: thresholds from the normal images of all categories together.
        categories: thresholds from each category's normal images; categories without normal images are missing.
        scores: scores of these images by category, the reference for measuring drift.
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
        """Forget the calibrated thresholds; thresholds given as numbers remain valid."""
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
        """Calibrate the thresholds of each category, and the pooled thresholds.

        Args:
            score: (N,), scores of normal images.
            peak: (N,), largest pixels of their maps.
            category: (N,), indices into `names`.
            pixels: histogram of their pixel scores, one group per category.
            names: names of the categories.
            cross_fitted: (N,) bool, whether images were scored by cross-fitting; None if no image was.

        Raises:
            UserError, ValueError: there are no scores, or some are not finite.
        """
        from adlight.metrics.image import check_finite

        if not len(score) and not (self.image.is_number and self.pixel.is_number):
            raise UserError(
                "no normal image was validated, so thresholds cannot be calibrated: raise val_fraction or "
                "limit_val_batches, or set both thresholds to numbers"
            )
        check_finite(score)

        def calibrate(chosen: "Tensor", histogram: "Histogram", source: str) -> Threshold:
            image, pixel = self.image.of_images(score[chosen]), self.pixel.of_pixels(histogram)
            region = None if self.image.is_number else self.image.of_images(peak[chosen])
            num_cross_fitted = 0 if cross_fitted is None else int(cross_fitted[chosen].sum())
            return Threshold(image, pixel, int(chosen.sum()), source, region, num_cross_fitted)

        self.pooled = calibrate(category >= 0, pixels.histogram(), ALL)
        groups = {name: group for group, name in enumerate(names) if (category == group).any()}
        self.categories = {name: calibrate(category == k, pixels.histogram(k), name) for name, k in groups.items()}
        self.scores = {name: score[category == k].tolist() for name, k in groups.items()}

    @property
    def is_fitted(self) -> bool:
        """Whether the thresholds are known."""
        return not math.isnan(sum(self.of(None)[:2]))

    @property
    def by_category(self) -> dict[str, Threshold]:
        """The thresholds for images of known categories; empty if the pooled thresholds apply to all images."""
        return self.categories if self.per == "category" else {}

    def of(self, category: str | None) -> Threshold:
        """Return a category's thresholds, or the pooled thresholds if it has none or is unknown (None).

        Thresholds given as numbers override calibrated thresholds.
        """
        calibrated = self.pooled if category is None else self.by_category.get(category, self.pooled)
        image = self.image.value if self.image.is_number else calibrated.image
        pixel = self.pixel.value if self.pixel.is_number else calibrated.pixel
        source = GIVEN if self.image.is_number and self.pixel.is_number else calibrated.source
        region = None if self.image.is_number or self.pixel.is_number else calibrated.region
        return calibrated._replace(image=image, pixel=pixel, source=source, region=region)

    def describe(self, names: Sequence[str]) -> str:
        """Describe the image thresholds of categories, the images they were calibrated on, and their guarantees."""
        if self.image.is_number:
            return f"{self.image.text} (as given)"
        effective = {name: self.of(name) for name in names}
        held_out = "" if any(threshold.cross_fitted for threshold in effective.values()) else "held-out "
        if len(set(effective.values())) == 1:
            shared = effective[names[0]]
            images = [f"{shared.num_normals} {held_out}normal images of {shared.source}", *self._remarks(shared)]
            return f"{shared.image:.6g} ({self.image.text} of {', '.join(images)})"
        groups = dict[str, list[str]]()  # names and thresholds with the same description
        for name, own in effective.items():
            images = [f"{own.num_normals}{'' if own.source == name else ' of ' + own.source}", *self._remarks(own)]
            groups.setdefault(", ".join(images), []).append(f"{name} {own.image:.6g}")
        parts = [f"{', '.join(same)} ({'each ' if same[1:] else ''}of {images})" for images, same in groups.items()]
        return f"{self.image.text} of each category's {held_out}normal images: {', '.join(parts)}"

    def _remarks(self, threshold: Threshold) -> Iterator[str]:
        """Describe the number of cross-fitted images, and the false alarm rate that the threshold guarantees."""
        if threshold.cross_fitted:
            yield f"{threshold.cross_fitted} cross-fitted"
        promised = self.image.promised(threshold.num_normals)
        if self.image.falls_short(threshold.num_normals):
            yield f"which can promise no less than {promised:.3g}: the largest score; {self.image.needed} are needed"
        elif promised is not None:
            yield f"false alarms {'about' if threshold.cross_fitted else 'at most'} {promised:.3g}"

    def as_dict(self) -> dict[str, Any]:
        """Return methods and calibrated thresholds as result files store them.

        `promised_fpr` is the guaranteed false alarm rate, on average over calibrations; with `cross_fitted` images it
        holds approximately. `needed_normals` is the number of images needed for the rate of the method.
        """
        promised = self.image.promised
        categories = self.state_dict()["categories"].items()
        return {
            "threshold_method": self.image.text,
            "pixel_threshold_method": self.pixel.text,
            "threshold_per": self.per,
            "threshold": self.pooled.image,
            "pixel_threshold": self.pooled.pixel,
            "region_threshold": self.pooled.region,
            "promised_fpr": promised(self.pooled.num_normals),
            "needed_normals": self.image.needed,
            "thresholds": {name: own | {"promised_fpr": promised(own["num_normals"])} for name, own in categories},
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the thresholds as plain dicts, strings and numbers, for checkpoints and JSON."""
        named = {name: threshold._asdict() for name, threshold in self.categories.items()}
        return {"pooled": self.pooled._asdict(), "categories": named, "scores": self.scores}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore thresholds from `state_dict`; the methods and `per` are kept."""
        for threshold in (state["pooled"], *state["categories"].values()):
            math.fsum((threshold["image"], threshold["pixel"]))  # raises a TypeError for anything but numbers
        self.pooled, self.scores = Threshold(**state["pooled"]), dict(state.get("scores", {}))
        self.categories = {name: Threshold(**values) for name, values in state["categories"].items()}
