"""Types of each program's own settings, which belong to no constructor's node, and their checks."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypedDict

from omegaconf import DictConfig, OmegaConf
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, TypeAdapter

from adlight.data.frames import Size
from adlight.data.tiling import Overlap, Tile
from adlight.faults import describe_faults
from adlight.metrics.methods import MethodText
from adlight.settings import Closing, PathName, Seed, Share, Text, find_faults, types_of
from adlight.types import UserError

InnerShare = Annotated[float, Field(gt=0, lt=1)]


def check_values(settings: type, config: DictConfig) -> None:
    """Raise a UserError if a program's own settings do not fit `settings`, one of the TypedDicts below."""
    types = types_of(settings)
    values = {name: config[name] for name in types if name in config and not OmegaConf.is_missing(config, name)}
    check_types(types, {name: _to_plain(value) for name, value in values.items()})


def check_types(
    types: Mapping[str, TypeAdapter], values: Mapping[str, Any], full_name: Callable[[str], str] = str
) -> None:
    """Raise a UserError if values do not fit their types; `full_name` completes their names for messages."""
    if faults := find_faults(types, values):
        raise UserError(describe_faults(faults, values, full_name))


def _to_plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


class TrainSettings(TypedDict, total=False):
    """Settings of `adlight.train`."""

    seed: Seed
    image_size: Size
    data_root: Text
    run_dir: Text
    ckpt: Text
    resume: Text | None
    resume_sweep: bool
    requested_frame: dict[Literal["image_size", "resize", "keep_shape"], Any] | None  # set by adlight
    partial_settings: list[Text]  # set by adlight


class DetectorSettings(TypedDict, total=False):
    """Settings of programs that load a detector."""

    run: Text
    ckpt: Text | None
    category: Text | None
    threshold: Any  # `Method.parse` has better messages
    pixel_threshold: Any
    batch_size: PositiveInt


class RunSettings(TypedDict, total=False):
    """Settings of programs that load a run with its data set."""

    run: Text
    ckpt: Text | None
    category: Text | None
    root: Text | None
    device: Text


class PredictSettings(DetectorSettings, total=False):
    """Settings of `adlight.predict`."""

    images: Text | list[Text]
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


class ExportSettings(DetectorSettings, total=False):
    """Settings of `adlight.export`."""

    format: Literal["onnx"]
    check: Text | None


class EvaluateSettings(TypedDict, total=False):
    """Settings of `adlight.evaluate` that do not belong to the run's config."""

    run: Text
    ckpt: Text | None


class DoctorSettings(TypedDict, total=False):
    """Settings of `adlight.doctor` except the data set's."""

    seed: Seed
    data_root: Text
    calibration: dict[Literal["image"], MethodText]


class ServeSettings(DetectorSettings, total=False):
    """Settings of `adlight.serve`."""

    host: Text
    port: Annotated[int, Field(ge=0, lt=2**16)]  # 0 chooses a free port
    token: Annotated[str, Field(min_length=16, pattern="^[!-~]+$")] | None
    device: Text
    queue: PositiveInt
    max_mb: PositiveFloat
    max_megapixels: Annotated[PositiveFloat, Field(le=178)]  # Pillow refuses larger images
    timeout: PositiveFloat
    max_labels: NonNegativeInt


class LearnSettings(RunSettings, total=False):
    """Settings of `adlight.learn`."""

    labels: Text | None
    recall: InnerShare | None
    precision: InnerShare | None
    head: bool


class FederateSettings(TypedDict, total=False):
    """Settings of `adlight.federate` in addition to those of a training."""

    sites: list[Any]  # `site_names` has better messages
    rounds: PositiveInt
    epochs_per_round: PositiveInt
    test_rounds: NonNegativeInt
    cpus: PositiveInt
    gpus: NonNegativeFloat
    app: Text | None


class GroupSettings(RunSettings, total=False):
    """Settings of `adlight.group`."""

    images: Text | None
    method: Literal["kmeans", "hdbscan"]
    groups: Annotated[int, Field(ge=2)] | None
    least: Annotated[int, Field(ge=2)]


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
