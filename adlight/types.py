"""The words that every room shares: what a dataset yields and what a detector answers.

Letters used in shapes, here and everywhere: B images, C channels, H x W pixels, L patches, P values a patch,
D width, n masks (views), Z latent size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypedDict

if TYPE_CHECKING:  # torch takes seconds: not for --help
    from torch import Tensor


class UserError(Exception):
    """Something the user can mend; its text is the one line that is shown, without a traceback."""


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
    category: Tensor  # (B,) int64, place in the data module's `categories`


class Scores(TypedDict):
    """What a detector answers for a batch; larger is more anomalous, any finite real."""

    image: Tensor  # (B,)
    pixel: Tensor  # (B, H, W)
    reconstruction: Tensor  # (B, C, H, W)
