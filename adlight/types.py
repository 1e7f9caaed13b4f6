"""Types shared by all packages: batches of a data set, scores and predictions of a detector, errors for the user.

Letters in shapes, everywhere: B images, C channels, H x W pixels, L patches, P values per patch, D width or features,
h x w cells, n masks (views), Z latent size.
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
    """An image of a data set that has not been read yet.

    Attributes:
        path: file of the image, or a name such as `test/00012` if the images are not separate files.
        category: object or texture (`bottle`); in one-class data sets, the normal class.
        defect: type of the defect; `good` for normal images.
        label: 0 normal, 1 anomalous.
        mask: file of the ground-truth mask; None if there is none.
    """

    path: str
    category: str
    defect: str = "good"
    label: int = 0
    mask: str | None = None


class Batch(TypedDict):
    """A batch of the data loaders; `index` is the position of an image in the records of its split."""

    image: Tensor  # (B, C, H, W); uint8 from the loader, float in [0, 1] in the module
    label: Tensor  # (B,) int64, 0 normal, 1 anomalous
    mask: Tensor  # (B, H, W) bool, True = defective
    index: Tensor  # (B,) int64
    category: Tensor  # (B,) int64, position in the data module's `categories`
    # (B, 2) int64, height and width of the images, which lie in the top left corner; the rest is padding
    size: NotRequired[Tensor]
    content: NotRequired[Tensor]  # (B, H, W) bool, the region of interest; the rest is grey
    # (B, 6) int64: for each tile its image's number, its top and left in the image, the image's height and width, and
    # the number of tiles of the image; `index` then numbers tiles
    tile: NotRequired[Tensor]


class Scores(TypedDict):
    """Scores of a batch: any finite real numbers, larger is more anomalous."""

    image: Tensor  # (B,)
    pixel: Tensor  # (B, H, W)
    reconstruction: Tensor | Callable[[slice], Tensor]  # (B, C, H, W), or a function that makes some rows of it
    cells: NotRequired[Tensor]  # (B, h, w), scores of cells, from detectors on features; NaN in padding
    residual: NotRequired[Tensor]  # (B, h, w, D), prediction errors of the cells


class ScoredImages(NamedTuple):
    """Scores of B images as arrays."""

    image: np.ndarray  # (B,) float64
    pixel: np.ndarray  # (B, H, W) float32
    reconstruction: np.ndarray | None = None  # (B, C, H, W) float32; None if not requested or not available

    @property
    def is_finite(self) -> np.ndarray:
        """Whether all scores of an image are finite, (B,) bool."""
        import numpy as np

        low, high = self.pixel.min((1, 2)), self.pixel.max((1, 2))  # no further array as large as the maps
        return np.isfinite(self.image) & np.isfinite(low) & np.isfinite(high)


class Scorer(Protocol):
    """Scores arrays of pixels, on any device and with any library."""

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
            reconstruct: whether to return reconstructions.
            content: (B, H, W) bool, the region of interest.
        """


def reconstruction_of(scores: Scores, rows: slice = slice(None)) -> Tensor:
    """Return the reconstructions of some rows of a batch, (n, C, H, W)."""
    reconstruction = scores["reconstruction"]
    return reconstruction(rows) if callable(reconstruction) else reconstruction[rows]


@dataclass(frozen=True)
class Prediction:
    """The prediction for an image: whether it is anomalous (score), where (boxes), and how much of it (area).

    H x W is the original size of the image in pixels, h x w its size after resizing. In a test, boxes are in pixels of
    the resized image, and the arrays are None.
    """

    score: float
    threshold: float
    pixel_threshold: float
    threshold_source: str  # the category that the thresholds belong to, `all categories`, or `given`
    area: float  # fraction of the image, or of its region of interest, that the regions cover, 0..1
    boxes: list[Box]  # bounding boxes of the regions in H x W, largest first
    mask: np.ndarray | None = None  # (H, W) bool, the regions
    anomaly_map: np.ndarray | None = None  # (h, w) float32, larger is more anomalous
    reconstruction: np.ndarray | None = None  # (C, h, w) float32, about 0..1
    path: str | None = None  # file of the image; None if it was given as pixels
    error: None = None  # counterpart of `Unreadable.error`

    @property
    def anomalous(self) -> bool:
        """Whether the score is above the threshold."""
        return self.score > self.threshold

    def as_dict(self) -> dict[str, Any]:
        """Return everything except the arrays, for JSON."""
        numbers = {name: float(getattr(self, name)) for name in ("score", "threshold", "pixel_threshold", "area")}
        boxes = [list(map(int, box)) for box in self.boxes]
        words = {"path": self.path, "anomalous": bool(self.anomalous), "threshold_source": self.threshold_source}
        return {**words, **numbers, "boxes": boxes}


@dataclass(frozen=True)
class Unreadable:
    """Placeholder among predictions for an unreadable file; accessing a field of a prediction raises a UserError."""

    path: str
    error: str  # why it cannot be read, in one line

    def __getattr__(self, name: str) -> Any:
        if name == "anomalous" or name in Prediction.__dataclass_fields__:
            raise UserError(self.error)
        raise AttributeError(name)

    def as_dict(self) -> dict[str, Any]:
        """Return path and error, for JSON."""
        return {"path": self.path, "error": self.error}


def unknown_name(kind: str, name: str, known: Sequence[str]) -> str:
    """Format an error message for an unknown name, with the most similar known name and all known names."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5) if len(name) > 2 else []
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"unknown {kind} {name!r}{hint} (there are: {', '.join(known) or 'none'})"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text; its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
