"""Methods that derive a threshold from normal scores, and the false alarm rates that they guarantee.

Given n scores of held-out normal images and the score of a new image, all exchangeable, the new score exceeds the k-th
smallest of the n with probability at most 1 - k / (n + 1) (exactly, without ties). Hence the threshold for a false
alarm rate of at most alpha is the ceil((n + 1)(1 - alpha))-th smallest score (split conformal prediction: Papadopoulos
2002; Vovk, Gammerman & Shafer 2005; Lei et al. 2018). The interpolated (1 - alpha)-quantile would have a rate of about
(1 + alpha (n - 1)) / (n + 1): 0.18 for 6 scores and alpha = 0.05. With fewer than 1 / alpha - 1 scores there is no such
threshold; then the largest score is used, which guarantees 1 / (n + 1). The guarantee is a mean over calibrations: the
rate of a single calibration follows Beta(n + 1 - k, k), with a deviation of 0.05 for 19 scores and 0.01 for 500.
"""

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import AfterValidator

from adlight.types import UserError

if TYPE_CHECKING:  # torch takes seconds
    from torch import Tensor

    from adlight.metrics.histogram import Histogram

RANGES = {"quantile": (0.0, 1.0), "fpr": (0.0, 1.0), "sigma": (0.0, math.inf)}  # of the values after the names
METHODS = "a number, `quantile:0.99`, `sigma:3`, `fpr:0.05` or `max`"


class Method(NamedTuple):
    """A method that derives a threshold from normal scores."""

    name: str  # number, quantile, sigma or fpr; max is fpr:0; for images, quantile:q is fpr:1-q
    value: float  # the number after the name
    text: str  # as written by the user

    @property
    def is_number(self) -> bool:
        """Whether the threshold is a given number, independent of the scores."""
        return self.name == "number"

    @staticmethod
    def parse(text: float | str) -> "Method":
        """Read a method such as `quantile:0.99`; a ValueError lists the accepted forms."""
        name, colon, number = str(text).strip().partition(":")
        if not colon:
            name, number = ("fpr", "0") if name == "max" else ("number", name)
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        is_known = not colon or name in RANGES
        low, high = RANGES.get(name, (-math.inf, math.inf))
        if not is_known or not math.isfinite(value) or not low <= value <= high:
            raise ValueError(f"threshold {text!r} is not understood; use {METHODS} (fractions in 0...1, sigma >= 0)")
        return Method(name, value, str(text))

    @property
    def rate(self) -> Fraction | None:
        """The guaranteed false alarm rate, as written; None if the method guarantees none."""
        if self.name not in ("fpr", "quantile"):
            return None
        share = Fraction(str(self.value))  # exactly 0.7: in floats, 10 * (1 - 0.7) is more than 3
        return share if self.name == "fpr" else 1 - share

    @property
    def needed(self) -> int | None:
        """Number of scores needed to guarantee the rate; None if nothing is guaranteed or no number suffices."""
        return math.ceil(1 / self.rate) - 1 if self.rate else None

    def rank(self, count: int) -> int | None:
        """Compute the rank of the threshold among `count` scores (1 is the smallest); None if it is not a score."""
        if self.rate is None:
            return None
        return min(max(math.ceil((count + 1) * (1 - self.rate)), 1), count)

    def promised(self, count: int) -> float | None:
        """Compute the false alarm rate that `count` scores guarantee on average; None if they guarantee none."""
        rank = self.rank(count)
        return float(1 - Fraction(rank, count + 1)) if rank else None

    def falls_short(self, count: int) -> bool:
        """Return whether `count` scores are too few to guarantee the rate."""
        return self.needed is not None and count < self.needed

    def of_images(self, score: "Tensor") -> float:
        """Compute the threshold from image scores (N,)."""
        if self.is_number:
            return self.value
        score = score.detach().cpu().double().sort().values
        rank = self.rank(len(score))
        if rank is None:
            return (score.mean() + self.value * score.std(correction=0)).item()
        return score[rank - 1].item()

    def of_pixels(self, pixels: "Histogram") -> float:
        """Compute the threshold from the normal pixels of a histogram."""
        if self.is_number:
            return self.value
        if self.name == "sigma":
            mean, deviation = pixels.mean_and_deviation()
            return mean + self.value * deviation
        return pixels.quantile(self.value if self.name == "quantile" else 1 - self.value)


def parse_number(name: str, value: float | str) -> Method:
    """Parse a threshold that must be a number, as there are no normal scores to derive it from; else a UserError."""
    try:
        method = Method.parse(value)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    if not method.is_number:
        setting = {"threshold": "calibration.image", "pixel_threshold": "calibration.pixel"}[name]
        raise UserError(
            f"{name}={value} needs normal images: adlight evaluate run=<run> {setting}={value} makes a folder, which "
            "run= takes in place of the run"
        )
    return method


def _check_method(text: float | str) -> float | str:
    Method.parse(text)
    return text


MethodText = Annotated[Any, AfterValidator(_check_method)]
