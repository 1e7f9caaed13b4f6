"""What may be set of an optimizer, those of torch and ours."""

import inspect
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypedDict

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch.optim import Optimizer

from adlight.settings import Decay
from adlight.types import UserError


class OptimizerSettings(TypedDict, total=False):
    """Settings that optimizers share."""

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
    maximize: Literal[False]  # of a loss
    capturable: bool
    differentiable: bool
    foreach: bool | None
    fused: bool | None


def is_optimizer(target: Any) -> bool:
    """Tell whether a target makes an optimizer."""
    return inspect.isclass(target) and issubclass(target, Optimizer)


def try_optimizer(target: Any, arguments: Mapping[str, Any], path: str) -> None:
    """Build an optimizer for nothing, as it would otherwise refuse settings only when the data has been read.

    Raises:
        UserError: it refuses them.
    """
    parameters = [torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(2)]
    for one in parameters:
        one.grad = torch.zeros_like(one)
    try:
        target([{"params": [one]} for one in parameters], **arguments).step()
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
