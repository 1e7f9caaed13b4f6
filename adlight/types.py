"""The words that every room shares: what a dataset yields, what a detector answers, what a user is told.

Letters used in shapes, here and everywhere: B images, C channels, H x W pixels, L patches, P values per patch,
D width, n masks (views), Z latent size.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, NotRequired, TypedDict

if TYPE_CHECKING:  # torch takes seconds: not for --help
    import numpy as np
    from torch import Tensor

Box = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom exclusive


class UserError(Exception):
    """An error the user can fix; shown as one line, without a traceback."""


class Record(NamedTuple):
    """One image of a data set, not yet read.

    Attributes:
        path: the image's file, or a name such as `test/00012` where images do not lie in files of their own.
        category: object or texture (`bottle`); the normal class in one-class sets.
        defect: kind of defect, `good` for normal images.
        label: 0 normal, 1 anomalous.
        mask: file of the ground-truth mask; None where there is none.
    """

    path: str
    category: str
    defect: str = "good"
    label: int = 0
    mask: str | None = None


class Batch(TypedDict):
    """What the data loaders yield; `index` identifies the image in its split's records."""

    image: Tensor  # (B, C, H, W); uint8 from the loader, float in [0, 1] in the module
    label: Tensor  # (B,) int64, 0 normal, 1 anomalous
    mask: Tensor  # (B, H, W) bool, True = defective
    index: Tensor  # (B,) int64
    category: Tensor  # (B,) int64, position in the data module's `categories`
    size: NotRequired[
        Tensor
    ]  # (B, 2) int64, height and width of the images in the top left corner; the rest is padding


class Scores(TypedDict):
    """What a detector answers for a batch; larger is more anomalous, any finite real."""

    image: Tensor  # (B,)
    pixel: Tensor  # (B, H, W)
    reconstruction: Tensor | Callable[[slice], Tensor]  # (B, C, H, W), or what makes those of some rows when asked


def reconstruction_of(scores: Scores, rows: slice = slice(None)) -> Tensor:
    """Give the reconstructions of some rows of a batch, (n, C, H, W)."""
    found = scores["reconstruction"]
    return found(rows) if callable(found) else found[rows]


@dataclass(frozen=True)
class Prediction:
    """The three answers for one image: anomalous or not (score), where (boxes), how much (area).

    H x W is the image's own size in pixels, h x w what it is resized to. In a test the boxes are in pixels of the
    resized image, and the arrays are None.
    """

    score: float
    threshold: float
    pixel_threshold: float
    threshold_source: str  # the category whose thresholds these are, `all categories`, or `given`
    area: float  # share of the pixels looked at above the pixel threshold, 0..1
    boxes: list[Box]  # around their regions in H x W, largest first
    mask: np.ndarray | None = None  # (H, W) bool, those pixels
    anomaly_map: np.ndarray | None = None  # (h, w) float32, larger is more anomalous
    reconstruction: np.ndarray | None = None  # (C, h, w) float32, about 0..1

    @property
    def anomalous(self) -> bool:
        """Whether the score is above the threshold."""
        return self.score > self.threshold


def check_range(
    name: str, value: float, minimum: float = 0.0, maximum: float = math.inf, *, exclusive: bool = False
) -> None:
    """Refuse a number outside [minimum, maximum], or at an exclusive minimum; NaN and infinity never pass.

    Raises:
        ValueError: it is outside, or not a number.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not minimum <= value <= maximum or (exclusive and value == minimum):
        limits = f"{'>' if exclusive else '>='} {minimum:g}" if minimum > -math.inf else "finite"
        limits += f" and <= {maximum:g}" if maximum < math.inf else ""
        raise ValueError(f"{name} must be a number {limits}, got {value}")


def check_integer(name: str, value: int, minimum: int) -> None:
    """Refuse what is not an integer of at least `minimum`.

    Raises:
        ValueError: it is not; nor is 10.0, which `1e1` on a command line makes.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value}")


def check_choice(name: str, value: object, known: Sequence[str]) -> None:
    """Refuse what is none of a few names.

    Raises:
        ValueError: it is not.
    """
    if value not in known:
        raise ValueError(unknown_name(name, str(value), known))


def unknown_name(kind: str, name: str, known: Sequence[str]) -> str:
    """Say that a name is unknown, which one comes nearest, and which there are."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5) if len(name) > 2 else []
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"unknown {kind} {name!r}{hint} (there are: {', '.join(known) or 'none'})"
