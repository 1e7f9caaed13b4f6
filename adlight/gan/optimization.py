"""Manual optimization: optimizer steps by gradients averaged over processes."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from adlight.types import UserError

if TYPE_CHECKING:  # a detector runs without Lightning
    import pytorch_lightning as pl

OptimizerFactory = Callable[..., Optimizer]


def optimizer_step(optimizer: Optimizer, loss: Tensor, clip: float = 0.0) -> Tensor:
    """Take an optimizer step by the gradient averaged over all processes, and clear the gradient afterwards.

    Args:
        optimizer: the optimizer; the loss is differentiated with respect to its parameters only.
        loss: scalar.
        clip: largest norm of the gradient; 0 disables clipping.

    Returns:
        Norm of the gradient before clipping.
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


def average_over_processes(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Average tensors over all processes with one all-reduce.

    DistributedDataParallel cannot do this, as it expects a gradient for every parameter of the module after each
    backward pass; here each pass differentiates only one of several networks.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return tensors
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = (flat / dist.get_world_size()).split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def make_optimizer(name: str, factory: OptimizerFactory, network: nn.Module) -> Optimizer:
    """Make the optimizer of a network; errors contain `name`."""
    try:
        return factory(network.parameters())
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error


def check_precision(trainer: "pl.Trainer") -> None:
    """Raise a UserError if the GAN does not train in the trainer's precision."""
    if trainer.precision not in ("32-true", "bf16-mixed"):
        raise UserError(f"precision={trainer.precision}: the GAN trains in 32-true or bf16-mixed")
