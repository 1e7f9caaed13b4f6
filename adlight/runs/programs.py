"""The programs' own settings, which belong to no constructor's node."""

from typing import Annotated, Any, Literal, TypedDict

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from adlight.data.frames import Size
from adlight.metrics.methods import MethodText
from adlight.settings import Seed, Text


class TrainSettings(TypedDict, total=False):
    """Settings of a training that belong to no node."""

    seed: Seed
    image_size: Size
    data_root: Text
    run_dir: Text
    ckpt: Text
    resume: Text | None
    resume_sweep: bool


class PredictSettings(TypedDict, total=False):
    """Settings of `adlight.predict`."""

    run: Text
    images: Text | list[Text]
    category: Text | None
    threshold: Any  # `Method.parse` says more of what is wrong
    pixel_threshold: Any
    ckpt: Text | None
    batch_size: PositiveInt
    device: Text
    save: Text | list[Text] | None
    on_bad_image: Literal["error", "skip"]


class EvaluateSettings(TypedDict, total=False):
    """Settings of `adlight.evaluate` that are not of the run's config."""

    run: Text
    ckpt: Text | None


class DoctorSettings(TypedDict, total=False):
    """Settings of `adlight.doctor` beside the data set's."""

    seed: Seed
    data_root: Text
    calibration: dict[Literal["image"], MethodText]


class ServeSettings(TypedDict, total=False):
    """Settings of `adlight.serve`."""

    run: Text
    host: Text
    port: Annotated[int, Field(ge=0, lt=2**16)]  # 0: any free one
    token: Annotated[str, Field(min_length=16, pattern="^[!-~]+$")] | None
    category: Text | None
    threshold: Any
    pixel_threshold: Any
    ckpt: Text | None
    batch_size: PositiveInt
    device: Text
    queue: PositiveInt
    max_mb: PositiveFloat
    max_megapixels: Annotated[PositiveFloat, Field(le=178)]  # Pillow itself refuses more
    timeout: PositiveFloat


class ReportSettings(TypedDict, total=False):
    """Settings of `adlight.report`."""

    runs: Text | Annotated[list[Text], Field(min_length=1)]
    out: Text | None
    reference: Text | list[Text] | None
    reference_column: Text | None
    title: str | int | float | None
    tolerance: NonNegativeFloat
    detailed: NonNegativeInt
    pictures: NonNegativeInt
