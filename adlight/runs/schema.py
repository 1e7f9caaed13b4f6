"""What may be set where no constructor of ours says it: the trainer and optimizers."""

import functools
import inspect
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypedDict

import pytorch_lightning as pl
import torch
from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, TypeAdapter
from torch.optim import Optimizer

from adlight import settings
from adlight.detection.inference import AUTOCAST, SHORT
from adlight.settings import Decay, PathName, PositiveShare
from adlight.types import UserError, unknown_name

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


Share = PositiveInt | PositiveShare  # so many batches, or this share of them
Devices = (
    PositiveInt
    | Literal[-1]
    | Annotated[str, AfterValidator(_numbers)]
    | Annotated[list[NonNegativeInt], Field(min_length=1)]
)


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
    check_val_every_n_epoch: PositiveInt | None
    gradient_clip_val: NonNegativeFloat | None
    accumulate_grad_batches: PositiveInt
    limit_train_batches: Share
    limit_val_batches: Share  # of 0 no threshold could come
    limit_test_batches: Share
    num_sanity_val_steps: Annotated[int, Field(ge=-1)]
    log_every_n_steps: NonNegativeInt
    deterministic: bool | Literal["warn"]
    fast_dev_run: Literal[False]  # it keeps no checkpoint to test; trainer=debug does


class OptimizerSettings(TypedDict, total=False):
    """Settings that optimizers share, those of torch and ours."""

    lr: PositiveFloat
    muon_lr: PositiveFloat
    betas: Annotated[list[Decay], Field(min_length=2, max_length=2)]
    eps: NonNegativeFloat
    weight_decay: NonNegativeFloat
    momentum: Decay
    dampening: NonNegativeFloat
    alpha: Decay
    nesterov: bool
    amsgrad: bool
    maximize: bool
    capturable: bool
    differentiable: bool
    foreach: bool | None
    fused: bool | None


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


def is_optimizer(target: Any) -> bool:
    """Tell whether a target makes an optimizer."""
    return inspect.isclass(target) and issubclass(target, Optimizer)


def try_optimizer(target: Any, arguments: Mapping[str, Any], path: str) -> None:
    """Build an optimizer for nothing, as it would otherwise refuse settings only when the data has been read.

    Raises:
        UserError: it refuses them.
    """
    try:
        target([{"params": [torch.nn.Parameter(torch.zeros(2, 2))]}], **arguments)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
