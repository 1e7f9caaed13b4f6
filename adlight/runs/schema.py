"""Types of settings that belong to constructors of libraries: the trainer's and the optimizers'."""

import functools
import inspect
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypedDict

import pytorch_lightning as pl
import torch
from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, TypeAdapter
from pytorch_lightning.accelerators import AcceleratorRegistry
from pytorch_lightning.strategies import StrategyRegistry
from torch.optim import Optimizer

from adlight import settings
from adlight.detection.inference import AUTOCAST, SHORT
from adlight.settings import Decay, PathName, PositiveShare
from adlight.types import UserError, first_line, unknown_name

LIBRARIES = ("pytorch_lightning.", "torch.optim.")


def _known(kind: str, *names: str) -> AfterValidator:
    def check(name: str | int) -> str | int:
        if str(name) not in names:
            raise ValueError(unknown_name(kind, str(name), names))
        return name

    return AfterValidator(check)


Batches = PositiveInt | PositiveShare  # a number of batches, or a fraction of them
DeviceNumbers = Annotated[str, Field(pattern=r"^(auto|-1|\d+(,\d+)*)$")]
Devices = PositiveInt | Literal[-1] | DeviceNumbers | Annotated[list[NonNegativeInt], Field(min_length=1)]


class TrainerSettings(TypedDict, total=False):
    """Settings that Lightning's Trainer misinterprets, or rejects only after the data has been read."""

    accelerator: Annotated[str, _known("accelerator", "auto", "gpu", *AcceleratorRegistry.available_accelerators())]
    devices: Devices
    num_nodes: PositiveInt
    strategy: Annotated[str, _known("strategy", "auto", *StrategyRegistry.available_strategies())]
    precision: Annotated[str | int, _known("precision", *AUTOCAST, *SHORT)]
    default_root_dir: PathName | None
    max_epochs: Annotated[int, Field(ge=1, lt=2**32)]
    min_epochs: NonNegativeInt | None
    max_steps: Literal[-1]  # a part of an epoch has no validation
    overfit_batches: Literal[0]  # it validates on training images
    logger: None  # the groups of the same names and `checkpoint` are for these
    callbacks: None
    enable_checkpointing: None
    check_val_every_n_epoch: PositiveInt | None
    val_check_interval: Batches | None
    gradient_clip_val: NonNegativeFloat | None
    accumulate_grad_batches: PositiveInt
    limit_train_batches: Batches
    limit_val_batches: Batches  # thresholds come from a validation
    limit_test_batches: Batches
    num_sanity_val_steps: Annotated[int, Field(ge=-1)]
    log_every_n_steps: NonNegativeInt
    deterministic: bool | Literal["warn"]
    barebones: Literal[False]  # it has no loggers, checkpoints or progress bars
    fast_dev_run: Literal[False]  # it keeps no checkpoint to test; use trainer=debug


class OptimizerSettings(TypedDict, total=False):
    """Settings that optimizers share."""

    lr: PositiveFloat
    muon_lr: PositiveFloat
    betas: Annotated[list[Decay], Field(min_length=2, max_length=2)]
    eps: NonNegativeFloat
    weight_decay: NonNegativeFloat
    momentum: Decay
    nesterov: bool
    maximize: Literal[False]  # losses are minimized


def is_optimizer(target: Any) -> bool:
    """Return whether a target is a class of optimizers."""
    return inspect.isclass(target) and issubclass(target, Optimizer)


def try_optimizer(target: Any, arguments: Mapping[str, Any], path: str) -> None:
    """Take a step on dummy parameters; raise a UserError if the optimizer rejects its settings."""
    parameters = [torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    try:
        target([{"params": [parameter]} for parameter in parameters], **arguments).step()
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: {first_line(error)}") from error


@functools.cache
def types_of(target: Any) -> dict[str, TypeAdapter]:
    """Return the types of a target's arguments by name; empty if they are not to be checked."""
    if is_optimizer(target):
        return settings.types_of(OptimizerSettings)
    if settings.is_checked(target):
        return settings.types_of(target)
    name = f"{getattr(target, '__module__', '')}."
    types = settings.types_of(target) if name.startswith(LIBRARIES) else {}
    return types | (settings.types_of(TrainerSettings) if target is pl.Trainer else {})
