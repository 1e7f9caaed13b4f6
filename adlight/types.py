"""The words that every room shares: what a dataset yields, what a detector answers, what a user is told.

Letters used in shapes, here and everywhere: B images, C channels, H x W pixels, L patches, P values per patch,
D width or features, h x w cells, n masks (views), Z latent size.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, NotRequired, Protocol, TypedDict

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
    content: NotRequired[Tensor]  # (B, H, W) bool, the region of interest; the rest is grey
    tile: NotRequired[
        Tensor
    ]  # (B, 6) int64: number of the tile's image, its top and left in it, the image's height and
    # width, and how many tiles there are of it; `index` counts tiles then


class Scores(TypedDict):
    """What a detector answers for a batch; larger is more anomalous, any finite real."""

    image: Tensor  # (B,)
    pixel: Tensor  # (B, H, W)
    reconstruction: Tensor | Callable[[slice], Tensor]  # (B, C, H, W), or what makes those of some rows when asked
    cells: NotRequired[Tensor]  # (B, h, w), of detectors on features: the map of their cells; NaN is padding
    residual: NotRequired[Tensor]  # (B, h, w, D), what was not as expected of each cell


class ScoredImages(NamedTuple):
    """What a detector answers for B images, away from its device."""

    image: np.ndarray  # (B,) float64
    pixel: np.ndarray  # (B, H, W) float32
    reconstruction: np.ndarray | None = None  # (B, C, H, W) float32; None where it was not asked for, or is not made

    @property
    def is_finite(self) -> np.ndarray:
        """Which images have finite scores only (B,)."""
        import numpy as np

        return np.isfinite(self.image) & np.isfinite(self.pixel).all((1, 2))


class Scorer(Protocol):
    """Scores pixels, wherever and by whatever library."""

    def __call__(
        self,
        pixels: np.ndarray,
        size: np.ndarray | None,
        reconstruct: bool = False,
        content: np.ndarray | None = None,
    ) -> ScoredImages:
        """Score images.

        Args:
            pixels: (B, C, H, W) uint8.
            size: (B, 2), heights and widths of padded images.
            reconstruct: whether reconstructions are wanted.
            content: (B, H, W) bool, the region of interest.
        """


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
    path: str | None = None  # the image's file; None where it came as pixels
    error: None = None  # as an `Unreadable` has one

    @property
    def anomalous(self) -> bool:
        """Whether the score is above the threshold."""
        return self.score > self.threshold

    def as_dict(self) -> dict[str, Any]:
        """Give what JSON can hold: everything but the arrays."""
        numbers = {name: float(getattr(self, name)) for name in ("score", "threshold", "pixel_threshold", "area")}
        boxes = [list(map(int, box)) for box in self.boxes]
        words = {"path": self.path, "anomalous": bool(self.anomalous), "threshold_source": self.threshold_source}
        return {**words, **numbers, "boxes": boxes}


@dataclass(frozen=True)
class Unreadable:
    """Stands among predictions for a file that cannot be read; asked for an answer it raises a UserError."""

    path: str
    error: str  # what is wrong with the file, in one line

    def __getattr__(self, name: str) -> Any:
        if name == "anomalous" or name in Prediction.__dataclass_fields__:
            raise UserError(self.error)
        raise AttributeError(name)

    def as_dict(self) -> dict[str, Any]:
        """Give what JSON can hold."""
        return {"path": self.path, "error": self.error}


def unknown_name(kind: str, name: str, known: Sequence[str]) -> str:
    """Say that a name is unknown, which one comes nearest, and which there are."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5) if len(name) > 2 else []
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"unknown {kind} {name!r}{hint} (there are: {', '.join(known) or 'none'})"
