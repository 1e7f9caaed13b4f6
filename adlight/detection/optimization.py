"""What the trainings share: the course of the learning rate, logged terms, and the stop when a loss diverges."""

import math
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from torch import Generator, Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from adlight.rng import derive_seed
from adlight.types import UserError


class WarmupCosine(LambdaLR):
    """Raises the learning rate, then lowers it by half a cosine, per step (He 2021).

    A resumed run follows the rates of its config, which may have changed, not those of the checkpoint.

    Args:
        optimizer: its groups' rates are the highest.
        warmup: steps of the rise.
        total: steps of the training.
    """

    def __init__(self, optimizer: Optimizer, warmup: float, total: int) -> None:
        super().__init__(optimizer, lambda step: warmup_cosine(step, warmup, total))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the step from a checkpoint; Lightning has restored the optimizer, with its old rates, before."""
        super().load_state_dict(state_dict | {"base_lrs": self.base_lrs})
        for group, base, factor in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["lr"] = base * factor(self.last_epoch)


def warmup_cosine(step: int, warmup: float, total: int) -> float:
    """Compute the learning rate's factor: linear to 1 over `warmup` steps, then half a cosine to 0 at `total`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1.0, total - warmup))))


def schedule_by_step(module: pl.LightningModule, optimizer: Optimizer, warmup: float) -> dict[str, Any]:
    """Pair an optimizer with `WarmupCosine` over the steps of the whole training; `warmup` is a share of them."""
    total = int(module.trainer.estimated_stepping_batches)
    schedule = WarmupCosine(optimizer, warmup * total, total)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def set_rates(optimizers: Sequence[Optimizer], rates: Sequence[Sequence[float]]) -> None:
    """Set the groups' learning rates: a resumed run has those of its config, not the checkpoint's."""
    for optimizer, own in zip(optimizers, rates, strict=True):
        for group, rate in zip(optimizer.param_groups, own, strict=True):
            group["lr"] = rate


def step_rng(module: pl.LightningModule, purpose: str, seed: int) -> Generator:
    """Seed what a batch draws, by process: a resumed run draws what the uninterrupted one would have drawn."""
    batch = module.trainer.fit_loop.total_batch_idx  # not the step, which stands still while gradients accumulate
    return Generator().manual_seed(derive_seed(purpose, seed, batch, module.global_rank))


def log_terms(module: pl.LightningModule, terms: dict[str, Tensor], images: int, prog_bar: str = "loss") -> None:
    """Log the epoch's means of a step's terms as `train/<name>`; the progress bar shows one of them."""
    how = {"on_step": False, "on_epoch": True, "batch_size": images, "sync_dist": True}
    for name, term in terms.items():
        module.log(f"train/{name}", term.detach(), prog_bar=name == prog_bar, **how)  # type: ignore[arg-type]


def stop_if_diverged(module: pl.LightningModule, rate: str = "lr") -> None:
    """Raise a UserError, on all processes, if a term of the epoch is not finite; earlier checkpoints are kept."""
    for name, value in module.trainer.callback_metrics.items():
        if name.startswith("train/") and not value.isfinite():
            raise UserError(f"{name} became non-finite in epoch {module.current_epoch + 1}: {diverged(rate)}")


def diverged(rate: str = "lr") -> str:
    """Say what to do about numbers that are not finite."""
    return f"the training has diverged; try a smaller {rate} or precision=32-true"
