"""Shared parts of training: learning rates, manual optimizer steps, averaged weights, logging, divergence."""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Annotated, Any

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from adlight.rng import derive_seed
from adlight.settings import checked
from adlight.types import UserError

if TYPE_CHECKING:  # detectors, which may have averaged weights, run without Lightning
    import pytorch_lightning as pl

OptimizerFactory = Callable[..., Optimizer]


class WarmupCosine(LambdaLR):
    """Linear warmup followed by half a cosine, per step (He 2021).

    The learning rates of the optimizer's groups are the peak rates. A resumed run uses the learning rates of its
    config, which may have changed, not the checkpoint's.
    """

    def __init__(self, optimizer: Optimizer, warmup: float, total: int) -> None:
        super().__init__(optimizer, lambda step: warmup_cosine(step, warmup, total))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step, but replace the old learning rates, which Lightning has just restored."""
        super().load_state_dict(state_dict | {"base_lrs": self.base_lrs})
        for group, base, factor in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["lr"] = base * factor(self.last_epoch)


def warmup_cosine(step: int, warmup: float, total: int) -> float:
    """Compute the learning rate's factor: linear to 1 over `warmup` steps, then half a cosine to 0 at `total`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1.0, total - warmup))))


def schedule_by_step(module: "pl.LightningModule", optimizer: Optimizer, warmup: float) -> dict[str, Any]:
    """Pair an optimizer with a `WarmupCosine` over the whole training; `warmup` is a fraction of its steps."""
    total = int(module.trainer.estimated_stepping_batches)
    schedule = WarmupCosine(optimizer, warmup * total, total)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def set_rates(optimizers: Sequence[Optimizer], rates: Sequence[Sequence[float]]) -> None:
    """Set the learning rates of all groups, so that a resumed run uses its config's rates, not the checkpoint's."""
    for optimizer, group_rates in zip(optimizers, rates, strict=True):
        for group, rate in zip(optimizer.param_groups, group_rates, strict=True):
            group["lr"] = rate


def optimizer_step(optimizer: Optimizer, loss: Tensor, clip: float = 0.0) -> Tensor:
    """Take an optimizer step by the gradient averaged over all processes. -> the gradient's norm before clipping.

    The loss (scalar) is differentiated with respect to the optimizer's parameters only. `clip` is the largest norm of
    the gradient; 0 disables clipping.
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
    """Build the optimizer of a network; errors contain `name`."""
    try:
        return factory(network.parameters())
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error


def check_precision(trainer: "pl.Trainer") -> None:
    """Raise a UserError if a GAN cannot be trained in the trainer's precision."""
    if trainer.precision not in ("32-true", "bf16-mixed"):
        raise UserError(f"precision={trainer.precision}: the GAN can only be trained in 32-true or bf16-mixed")


class EMA(nn.Module):
    """Exponential moving average of a network's weights (Polyak 1992), stored next to them in the checkpoint.

    The attribute `network` is the average. The first update copies the weights; later ones keep the fraction `decay`,
    such as 0.999, of the old average.
    """

    num_updates: Tensor

    @checked
    def __init__(self, network: nn.Module, decay: Annotated[float, Field(gt=0, lt=1)]) -> None:
        super().__init__()
        self.network = deepcopy(network).requires_grad_(False)
        self.decay, self.started = decay, False
        self.register_buffer("num_updates", torch.tensor(0))

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the average towards the network's current weights."""
        averages: list[Tensor] = list(self.network.parameters())
        weights: list[Tensor] = list(network.parameters())
        self.started = self.started or bool(self.num_updates > 0)  # read once: it synchronizes with the GPU
        if self.started:
            torch._foreach_lerp_(averages, weights, 1 - self.decay)
        else:
            torch._foreach_copy_(averages, weights)
        self.started = True
        self.num_updates += 1


def step_rng(module: "pl.LightningModule", purpose: str, seed: int) -> Generator:
    """Make a random generator for this batch and process; a resumed run draws as an uninterrupted run would."""
    batch = module.trainer.fit_loop.total_batch_idx  # the global step does not advance while gradients accumulate
    return Generator().manual_seed(derive_seed(purpose, seed, batch, module.global_rank))


def log_terms(module: "pl.LightningModule", terms: dict[str, Tensor], images: int, prog_bar: str = "loss") -> None:
    """Log epoch means of a step's loss terms as `train/<name>`; the progress bar shows `prog_bar`."""
    how = {"on_step": False, "on_epoch": True, "batch_size": images, "sync_dist": True}
    for name, term in terms.items():
        module.log(f"train/{name}", term.detach(), prog_bar=name == prog_bar, **how)  # type: ignore[arg-type]


def stop_if_diverged(module: "pl.LightningModule", rate: str = "lr") -> None:
    """Raise a UserError on all processes if a loss term of the epoch is not finite; earlier checkpoints are kept."""
    for name, value in module.trainer.callback_metrics.items():
        if name.startswith("train/") and not value.isfinite():
            raise UserError(f"{name} became non-finite in epoch {module.current_epoch + 1}: {explain_divergence(rate)}")


def explain_divergence(rate: str = "lr") -> str:
    """Explain non-finite numbers in training; `rate` names the setting of the learning rate."""
    return f"the training has diverged; try a smaller {rate} or precision=32-true"
