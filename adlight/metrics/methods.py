"""How a threshold follows from normal scores."""

import math
from typing import Annotated, NamedTuple

from pydantic import AfterValidator
from torch import Tensor

from adlight.metrics.histogram import Histogram
from adlight.types import UserError

METHODS = "a number, `quantile:0.99`, `sigma:3`, `fpr:0.05` or `max`"


class Method(NamedTuple):
    """How a threshold follows from normal scores."""

    name: str  # number, quantile, sigma or fpr; max is fpr:0
    value: float  # the number behind it
    text: str  # what the user wrote

    @property
    def is_number(self) -> bool:
        """Whether the threshold is the number itself, whatever the scores."""
        return self.name == "number"

    @staticmethod
    def parse(text: float | str) -> "Method":
        """Read a method such as `quantile:0.99`.

        Raises:
            ValueError: the text is none of the accepted forms; the message names both.
        """
        name, colon, number = str(text).strip().partition(":")
        if not colon:
            name, number = ("fpr", "0") if name == "max" else ("number", name)
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        known = name in ("quantile", "sigma", "fpr") or not colon
        if not known or not math.isfinite(value) or (name in ("quantile", "fpr") and not 0 <= value <= 1):
            raise ValueError(f"threshold {text!r} is not understood; write {METHODS} (shares lie in 0...1)")
        return Method(name, value, str(text))

    def of_images(self, score: Tensor) -> float:
        """Find the threshold of scores (N,)."""
        if self.is_number:
            return self.value
        score = score.detach().cpu().double().sort().values
        if self.name == "quantile":
            return score.quantile(self.value).item()
        if self.name == "sigma":
            return (score.mean() + self.value * score.std(correction=0)).item()
        num_above = math.floor(self.value * len(score) + 1e-9)  # 0.29 * 100 is 28.999...
        return score[max(len(score) - 1 - num_above, 0)].item()

    def of_pixels(self, pixels: Histogram) -> float:
        """Find the threshold of the normal pixels in a histogram."""
        if self.is_number:
            return self.value
        if self.name == "sigma":
            mean, deviation = pixels.mean_and_deviation()
            return mean + self.value * deviation
        return pixels.quantile(self.value if self.name == "quantile" else 1 - self.value)


def parse_number(name: str, value: float | str) -> Method:
    """Read a threshold that needs no normal scores.

    Raises:
        UserError: it needs some, or cannot be read.
    """
    try:
        method = Method.parse(value)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    if not method.is_number:
        setting = {"threshold": "calibration.image", "pixel_threshold": "calibration.pixel"}[name]
        raise UserError(
            f"{name}={value} needs normal images: python -m adlight.evaluate run=<run> {setting}={value} gives a number"
        )
    return method


def _understood(text: float | str) -> float | str:
    Method.parse(text)
    return text


MethodText = Annotated[float | str, AfterValidator(_understood)]
