"""What may be set where no constructor of ours says it: the trainer."""

import functools
import re
from typing import Annotated, Any, Literal, TypedDict

import pytorch_lightning as pl
from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, TypeAdapter

from adlight import settings
from adlight.detection.inference import AUTOCAST, SHORT
from adlight.runs.optimizers import OptimizerSettings, is_optimizer
from adlight.settings import PathName, PositiveShare
from adlight.types import unknown_name

LIBRARIES = ("pytorch_lightning.", "torch.optim.")


def _known_accelerator(name: str) -> str:
    from pytorch_lightning.accelerators import AcceleratorRegistry

    return _one_of("accelerator", name, ["auto", "gpu", *AcceleratorRegistry.available_accelerators()])


def _known_strategy(name: str) -> str:
    from pytorch_lightning.strategies import StrategyRegistry

    return _one_of("strategy", name, ["auto", *StrategyRegistry.available_strategies()])


def _known_precision(name: str | int) -> str | int:
    _one_of("precision", str(name), [*AUTOCAST, *SHORT])
    return name


def _one_of(kind: str, name: str, known: list[str]) -> str:
    if name not in known:
        raise ValueError(unknown_name(kind, name, known))
    return name


def _numbers(devices: str) -> str:
    if not re.fullmatch(r"auto|-1|\d+(,\d+)*", devices):
        raise ValueError("be a number of devices, their numbers or auto")
    return devices


def _unlike(devices: list[int]) -> list[int]:
    if len(set(devices)) < len(devices):
        raise ValueError("be a list of different devices")
    return devices


def _by_groups(given: Any) -> Any:
    raise ValueError("be left out, as the groups callbacks, logger and checkpoint are for that")


Share = PositiveInt | PositiveShare  # so many batches, or this share of them
Devices = (
    PositiveInt
    | Literal[-1]
    | Annotated[str, AfterValidator(_numbers)]
    | Annotated[list[NonNegativeInt], Field(min_length=1), AfterValidator(_unlike)]
)
ByGroups = Annotated[Any, AfterValidator(_by_groups)]


class TrainerSettings(TypedDict, total=False):
    """Settings of Lightning's Trainer that it takes wrongly, or refuses only when the data has been read."""

    accelerator: Annotated[str, AfterValidator(_known_accelerator)]
    devices: Devices
    num_nodes: PositiveInt
    strategy: Annotated[str, AfterValidator(_known_strategy)]
    precision: Annotated[str | int, AfterValidator(_known_precision)]
    default_root_dir: PathName | None
    max_epochs: Annotated[int, Field(ge=1, lt=2**32)]
    min_epochs: NonNegativeInt | None
    max_steps: Literal[-1]  # a training of part of an epoch has no validation
    overfit_batches: Literal[0]  # it validates on training images
    logger: ByGroups
    callbacks: ByGroups
    enable_checkpointing: ByGroups
    check_val_every_n_epoch: PositiveInt | None
    val_check_interval: Share | None
    gradient_clip_val: NonNegativeFloat | None
    accumulate_grad_batches: PositiveInt
    limit_train_batches: Share
    limit_val_batches: Share  # of 0 no threshold could come
    limit_test_batches: Share
    num_sanity_val_steps: Annotated[int, Field(ge=-1)]
    log_every_n_steps: NonNegativeInt
    deterministic: bool | Literal["warn"]
    barebones: Literal[False]  # it has no loggers, checkpoints or bars
    fast_dev_run: Literal[False]  # it keeps no checkpoint to test; trainer=debug does


@functools.cache
def types_of(target: Any) -> dict[str, TypeAdapter]:
    """Look up the types of a target's arguments, by name; of constructors that do not check theirs, none."""
    if is_optimizer(target):
        return settings.types_of(OptimizerSettings)
    if settings.is_checked(target):
        return settings.types_of(target)
    name = f"{getattr(target, '__module__', '')}."
    types = settings.types_of(target) if name.startswith(LIBRARIES) else {}
    return types | (settings.types_of(TrainerSettings) if target is pl.Trainer else {})
