"""Thresholds of a detector that has learned from labels."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt
from torch import Tensor

from adlight.metrics.methods import MethodText
from adlight.metrics.pixel import PixelHistogram
from adlight.metrics.thresholds import ALL, Calibration
from adlight.settings import Share, checked
from adlight.types import UserError

LABELS = "labels of"  # a category: whose thresholds these are
Asked = Annotated[str, Field(pattern=r"^(recall|precision)=0\.\d*[1-9]\d*$")]


class LabelledCalibration(Calibration):
    """Image thresholds that labelled images support; where a category has none, those of its normal images.

    Args:
        image, pixel, per, min_area, closing, folds: as of `Calibration`.
        asked: `recall=<r>` or `precision=<p>`, what the thresholds of labels are for; None: there are none.
    """

    @checked
    def __init__(
        self,
        image: MethodText = "fpr:0.05",
        pixel: MethodText = "quantile:0.995",
        per: Literal["category", "all"] = "category",
        min_area: Share = 0.0,
        closing: NonNegativeFloat = 0.0,
        folds: NonNegativeInt = 5,
        asked: Asked | None = None,
    ) -> None:
        super().__init__(image, pixel, per, min_area, closing, folds)
        self.asked = asked

    def fit(
        self,
        score: Tensor,
        peak: Tensor,
        category: Tensor,
        pixels: PixelHistogram,
        names: Sequence[str],
        cross_fitted: Tensor | None = None,
    ) -> None:
        """Find the thresholds of normal images, as `Calibration` does.

        Raises:
            UserError: the thresholds follow from labels, which are not here.
        """
        if self.asked is not None:
            raise UserError(
                f"the thresholds follow from labels ({self.asked}): add calibration.asked=null to take those of normal "
                "images, or learn again from the run itself"
            )
        super().fit(score, peak, category, pixels, names, cross_fitted)

    def take(self, found: Mapping[str | None, float], asked: Asked) -> None:
        """Take image thresholds that labels support, by category; None is that of all together."""
        self.asked = asked
        for name, value in found.items():
            if name is None:
                self.pooled = self.pooled._replace(image=value, source=f"{LABELS} {ALL}")
            else:
                known = self.categories.get(name, self.pooled)
                self.categories[name] = known._replace(image=value, source=f"{LABELS} {name}")

    def describe(self, names: Sequence[str]) -> str:
        """Say what the image thresholds of these categories are, and where they come from."""
        if self.asked is None:
            return super().describe(names)
        effective = {name: self.of(name) for name in names}
        found = (f"{name} {one.image:.6g} (of {one.source})" for name, one in effective.items())
        return f"{self.asked} where there are labels: {', '.join(found)}"

    def as_dict(self) -> dict[str, Any]:
        """Give methods and thresholds as a result's file holds them; labels promise no false alarm rate."""
        found = super().as_dict()
        if self.asked is None:
            return found
        of_labels = {name for name, one in self.categories.items() if one.source == f"{LABELS} {name}"}
        for name in of_labels:
            found["thresholds"][name]["promised_fpr"] = None
        return found | {"threshold_method": self.asked, "promised_fpr": None}
