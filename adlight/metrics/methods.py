"""How a threshold follows from normal scores, and which false alarm rate it can promise.

Of n scores that no training has seen and a new normal image's, in any order equally likely, the new one is above the
k-th smallest of the n with probability 1 - k / (n + 1) at most (exactly, without ties). So the threshold that keeps
the rate at or below alpha is the ceil((n + 1)(1 - alpha))-th smallest (split conformal prediction: Papadopoulos 2002;
Vovk, Gammerman & Shafer 2005; Lei et al. 2018). The interpolated (1 - alpha)-quantile of the n themselves has about
(1 + alpha (n - 1)) / (n + 1): 0.18 of 6 scores for alpha = 0.05. Fewer than 1 / alpha - 1 scores have no such
threshold: the largest is taken, which promises 1 / (n + 1). A promise is a mean over calibrations: with n scores the
rate of one scatters around it as Beta(n + 1 - k, k) does, by 0.05 for 19 scores and 0.01 for 500.
"""

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import AfterValidator

from adlight.types import UserError

if TYPE_CHECKING:  # torch takes seconds
    from torch import Tensor

    from adlight.metrics.histogram import Histogram

METHODS = "a number, `quantile:0.99`, `sigma:3`, `fpr:0.05` or `max`"


class Method(NamedTuple):
    """How a threshold follows from normal scores."""

    name: str  # number, quantile, sigma or fpr; max is fpr:0. Of images, quantile:q is fpr:1-q
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
        out_of_range = (name in ("quantile", "fpr") and not 0 <= value <= 1) or (name == "sigma" and value < 0)
        if not known or not math.isfinite(value) or out_of_range:
            raise ValueError(f"threshold {text!r} is not understood; write {METHODS} (shares in 0...1, sigma >= 0)")
        return Method(name, value, str(text))

    @property
    def rate(self) -> Fraction | None:
        """The share of normal images that may be called anomalous, as written; None where nothing is promised."""
        if self.name not in ("fpr", "quantile"):
            return None
        share = Fraction(str(self.value))  # 0.7 itself: in floats, 10 * (1 - 0.7) is more than 3
        return share if self.name == "fpr" else 1 - share

    @property
    def needed(self) -> int | None:
        """How many scores it takes to promise the rate; None where nothing is promised, or no number is enough."""
        return math.ceil(1 / self.rate) - 1 if self.rate else None

    def rank(self, count: int) -> int | None:
        """Find which of `count` scores is the threshold, 1 being the smallest; None where it is none of them."""
        if self.rate is None:
            return None
        return min(max(math.ceil((count + 1) * (1 - self.rate)), 1), count)

    def promised(self, count: int) -> float | None:
        """Compute the false alarm rate that a threshold of `count` scores keeps on average; None: it promises none."""
        rank = self.rank(count)
        return float(1 - Fraction(rank, count + 1)) if rank else None

    def falls_short(self, count: int) -> bool:
        """Whether `count` scores are too few to promise the rate."""
        return self.needed is not None and count < self.needed

    def of_images(self, score: "Tensor") -> float:
        """Find the threshold of scores (N,)."""
        if self.is_number:
            return self.value
        score = score.detach().cpu().double().sort().values
        rank = self.rank(len(score))
        if rank is None:
            return (score.mean() + self.value * score.std(correction=0)).item()
        return score[rank - 1].item()

    def of_pixels(self, pixels: "Histogram") -> float:
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


MethodText = Annotated[Any, AfterValidator(_understood)]
