"""What may be set of `adlight.predict`."""

from typing import Any, Literal, TypedDict

from pydantic import NonNegativeFloat, PositiveInt

from adlight.settings import PathName, Share, Text


class PredictSettings(TypedDict, total=False):
    """Settings of `adlight.predict`."""

    run: Text
    images: Text | list[Text]
    category: Text | None
    threshold: Any  # `Method.parse` says more of what is wrong
    pixel_threshold: Any
    roi: PathName | None
    tile: PositiveInt | None
    overlap: Share | None
    min_area: Share | None
    closing: NonNegativeFloat | None
    ckpt: Text | None
    batch_size: PositiveInt
    device: Text
    save: Text | list[Text] | None
    on_bad_image: Literal["error", "skip"]
    resume: Text | None
