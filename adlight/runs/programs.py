"""Types of the programs' own settings, which belong to no constructor's node, and their checks."""

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

ABSENT = object()  # stands for settings without a value
InnerShare = Annotated[float, Field(gt=0, lt=1)]


def check_values(config: DictConfig) -> None:
    """Raise a UserError if a program's own settings do not fit their types in `Settings`."""
    types = types_of(Settings) | {"calibration.image": TypeAdapter(MethodText)}  # doctor has no node for the latter
    values = {name: OmegaConf.select(config, name, default=ABSENT) for name in types}
    check_types(types, {name: _to_plain(value) for name, value in values.items() if value is not ABSENT})


def check_types(
    types: Mapping[str, TypeAdapter], values: Mapping[str, Any], full_name: Callable[[str], str] = str
) -> None:
    """Raise a UserError if values do not fit their types; `full_name` completes their names for messages."""
    if faults := find_faults(types, values):
        raise UserError(describe_faults(faults, values, full_name))


def _to_plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


class Settings(TypedDict, total=False):
    """Settings at the top of the programs' configs; a name has the same type in each of them."""

    seed: Seed
    image_size: Size
    data_root: Text
    run_dir: Text
    resume: Text | None
    resume_sweep: bool
    requested_frame: dict[Literal["image_size", "resize", "keep_shape"], Any] | None  # set by adlight
    partial_settings: dict[Text, list[Text]] | list[Text] | None  # set by adlight; a list in runs of earlier versions

    # of programs that load a run
    run: Text
    ckpt: Text | None
    category: Text | None
    root: Text | None
    images: Text | list[Text] | None
    device: Text
    batch_size: PositiveInt
    threshold: Any  # `Method.parse` has better messages
    pixel_threshold: Any
    roi: PathName | None
    tile: Tile | None
    overlap: Overlap | None
    min_area: Share | None
    closing: Closing | None

    # predict, export
    save: Text | list[Text] | None
    on_bad_image: Literal["error", "skip"]
    engine: Literal["ray"] | None
    actors: PositiveInt | None
    ray_address: Text | None
    part_size: PositiveInt
    format: Literal["onnx"]
    check: Text | None

    # serve
    host: Text
    port: Annotated[int, Field(ge=0, lt=2**16)]  # 0 chooses a free port
    token: Annotated[str, Field(min_length=16, pattern="^[!-~]+$")] | None
    queue: PositiveInt
    max_mb: PositiveFloat
    max_megapixels: Annotated[PositiveFloat, Field(le=178)]  # Pillow refuses larger images
    timeout: PositiveFloat
    max_labels: NonNegativeInt

    # learn, group
    labels: Text | None
    recall: InnerShare | None
    precision: InnerShare | None
    head: bool
    method: Literal["kmeans", "hdbscan"]
    groups: Annotated[int, Field(ge=2)] | None
    least: Annotated[int, Field(ge=2)]

    # federate
    sites: list[Any]  # `site_names` has better messages
    rounds: PositiveInt
    epochs_per_round: PositiveInt
    test_rounds: NonNegativeInt
    cpus: PositiveInt
    gpus: NonNegativeFloat
    app: Text | None

    # report
    runs: Text | Annotated[list[Text], Field(min_length=1)]
    out: Text | None
    reference: Text | list[Text] | None
    reference_column: Text | None
    title: str | int | float | None
    tolerance: NonNegativeFloat
    detailed: NonNegativeInt
    pictures: NonNegativeInt
