"""Calibration of a detector that has learned from labels."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt

from adlight.metrics.methods import MethodText
from adlight.metrics.thresholds import ALL, Calibration
from adlight.settings import Closing, Share, checked
from adlight.types import UserError

LABELS = "labels of"  # source of a threshold, before the category
Asked = Annotated[str, Field(pattern=r"^(recall|precision)=0\.\d*[1-9]\d*$")]


class LabelledCalibration(Calibration):
    """Image thresholds found from labelled images; categories without labels keep those of their normal images.

    Args:
        image, pixel, per, min_area, closing, folds: see `Calibration`.
        asked: target of the thresholds found from labels, `recall=<r>` or `precision=<p>`; None if there are none.
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
        asked: Asked | None = None,
    ) -> None:
        super().__init__(image, pixel, per, min_area, closing, folds)
        self.asked = asked

    def fit(self, *arguments: Any, **named: Any) -> None:
        """Calibrate on normal images as `Calibration` does; raise a UserError for thresholds found from labels."""
        if self.asked is not None:
            raise UserError(
                f"the thresholds were found from labels ({self.asked}): add calibration.asked=null to use those of "
                "normal images, or learn again from the run itself"
            )
        super().fit(*arguments, **named)

    def set_image_thresholds(self, found: Mapping[str | None, float], asked: Asked) -> None:
        """Set image thresholds found from labels by category; the key None stands for all categories together."""
        self.asked = asked
        for name, value in found.items():
            if name is None:
                self.pooled = self.pooled._replace(image=value, source=f"{LABELS} {ALL}")
            else:
                before = self.categories.get(name, self.pooled)
                self.categories[name] = before._replace(image=value, source=f"{LABELS} {name}")

    def describe(self, names: Sequence[str]) -> str:
        """Describe the image thresholds of the named categories and their sources."""
        if self.asked is None:
            return super().describe(names)
        effective = {name: self.of(name) for name in names}
        texts = (f"{name} {threshold.image:.6g} (of {threshold.source})" for name, threshold in effective.items())
        return f"{self.asked} where there are labels: {', '.join(texts)}"

    def as_dict(self) -> dict[str, Any]:
        """Return methods and thresholds for a result file; thresholds from labels promise no false alarm rate."""
        values = super().as_dict()
        if self.asked is None:
            return values
        for name, threshold in self.categories.items():
            if threshold.source == f"{LABELS} {name}":
                values["thresholds"][name]["promised_fpr"] = None
        return values | {"threshold_method": self.asked, "promised_fpr": None}
