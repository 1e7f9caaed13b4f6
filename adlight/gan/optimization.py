"""What both trainings share: steps by manual optimization, averaged over processes."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from adlight.types import UserError

if TYPE_CHECKING:  # a detector is used without it
    import pytorch_lightning as pl

OptimizerFactory = Callable[..., Optimizer]


def optimizer_step(optimizer: Optimizer, loss: Tensor, clip: float = 0.0) -> Tensor:
    """Step the optimizer's own network by the gradient over all processes; leave no gradient behind.

    Args:
        optimizer: its parameters are those that the loss is differentiated by.
        loss: scalar.
        clip: largest norm of the gradient; 0 = any.

    Returns:
        The gradient's norm before clipping.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = average_over_processes(torch.autograd.grad(loss, parameters))
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    norm = nn.utils.get_total_norm(gradients)
    if clip:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    optimizer.step()
    optimizer.zero_grad()
    return norm


def average_over_processes(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    """Average gradients over all processes, by one all-reduce.

    Not left to DistributedDataParallel, which expects a gradient for every parameter of the module after each backward
    pass: here each pass is one network's.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return gradients
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    parts = (flat / dist.get_world_size()).split([gradient.numel() for gradient in gradients])
    return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]


def make_optimizer(name: str, factory: OptimizerFactory, network: nn.Module) -> Optimizer:
    """Make a network's optimizer; an error names it."""
    try:
        return factory(network.parameters())
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error


def check_precision(trainer: "pl.Trainer") -> None:
    """Refuse a precision in which the GAN does not train."""
    if trainer.precision not in ("32-true", "bf16-mixed"):
        raise UserError(f"precision={trainer.precision}: the GAN trains in 32-true or bf16-mixed")
