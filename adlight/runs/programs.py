"""The programs' own settings, which belong to no constructor's node."""

from typing import Annotated, Any, Literal, TypedDict

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from adlight.data.frames import Size
from adlight.data.tiling import Overlap, Tile
from adlight.metrics.methods import MethodText
from adlight.settings import Closing, PathName, Seed, Share, Text

InnerShare = Annotated[float, Field(gt=0, lt=1)]


class TrainSettings(TypedDict, total=False):
    """Settings of a training that belong to no node."""

    seed: Seed
    image_size: Size
    data_root: Text
    run_dir: Text
    ckpt: Text
    resume: Text | None
    resume_sweep: bool
    requested_frame: dict[Literal["image_size", "resize", "keep_shape"], Any] | None  # this and the next: by adlight
    partial_settings: list[Text]


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
    engine: Literal["ray"] | None
    actors: PositiveInt | None
    ray_address: Text | None
    part_size: PositiveInt
    resume: Text | None
    roi: PathName | None
    tile: Tile | None
    overlap: Overlap | None
    min_area: Share | None
    closing: Closing | None


class ExportSettings(TypedDict, total=False):
    """Settings of `adlight.export`."""

    run: Text
    format: Literal["onnx"]
    check: Text | None
    category: Text | None
    threshold: Any
    pixel_threshold: Any
    ckpt: Text | None
    batch_size: PositiveInt


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
    max_labels: NonNegativeInt


class LearnSettings(TypedDict, total=False):
    """Settings of `adlight.learn`."""

    run: Text
    labels: Text | None
    recall: InnerShare | None
    precision: InnerShare | None
    head: bool
    category: Text | None
    root: Text | None
    device: Text
    ckpt: Text | None


class FederateSettings(TypedDict, total=False):
    """Settings of `adlight.federate` beside a training's."""

    sites: list[Any]  # `site_names` says more of what is wrong
    rounds: PositiveInt
    epochs_per_round: PositiveInt
    test_rounds: NonNegativeInt
    cpus: PositiveInt
    gpus: NonNegativeFloat
    app: Text | None


class GroupSettings(TypedDict, total=False):
    """Settings of `adlight.group`."""

    run: Text
    images: Text | None
    method: Literal["kmeans", "hdbscan"]
    groups: Annotated[int, Field(ge=2)] | None
    least: Annotated[int, Field(ge=2)]
    category: Text | None
    root: Text | None
    device: Text
    ckpt: Text | None


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
