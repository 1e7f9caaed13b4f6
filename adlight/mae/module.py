"""Training of the multi-mask masked autoencoder (article, section 2.4)."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from adlight.detection.ema import EMA
from adlight.detection.module import DIVERGED, AnomalyModule
from adlight.mae.masking import draw_masks
from adlight.mae.network import MaskedAutoencoder
from adlight.mae.objective import ReconstructionLoss
from adlight.mae.scorer import MultiMaskScorer, reconstruct
from adlight.rng import derive_seed
from adlight.types import Batch, Scores, UserError


class MAEModule(AnomalyModule):
    """Hide everything in turn, reconstruct it from what is left, learn from the difference.

    Args:
        network: the autoencoder.
        objective: reconstruction objective; None where nothing will be trained (evaluation needs no LPIPS weights).
        scorer: turns a trained network into scores.
        optimizer: makes the optimiser from parameter groups, such as a partial of AdamW.
        mask_ratio: r; a view hides this share of the patches.
        masks: `complementary` or `single` (the plain MAE).
        warmup_epochs: length of the linear warm-up; a half cosine to 0 follows, both by the step.
        ema: decay of an average of the weights that is used for scoring; 0 = none.
        seed: of the masks, which depend on it, the step and the process only.

    Raises:
        ValueError: a mask ratio that the scheme does not allow, or a number out of range.
    """

    def __init__(
        self,
        network: MaskedAutoencoder,
        objective: ReconstructionLoss | None,
        scorer: MultiMaskScorer,
        optimizer: Callable[..., Optimizer],
        mask_ratio: float = 0.75,
        masks: str = "complementary",
        warmup_epochs: float = 10,
        ema: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        draw_masks(masks, mask_ratio, network.num_patches, Generator())  # an impossible ratio fails here
        self.network, self.objective, self.scorer, self.optimizer = network, objective, scorer, optimizer
        self.mask_ratio, self.masks, self.warmup_epochs, self.seed = mask_ratio, masks, warmup_epochs, seed
        self.ema = EMA(network, ema) if ema else None
        self.averaged_step = 0

    def describe(self) -> list[str]:
        """The terms of the loss that were on, with their weights."""
        if self.objective is None:
            return []
        terms = " + ".join(f"{weight:g} {name}" for name, weight in self.objective.weights.items())
        return [f"loss: {terms}"]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step: draw masks, predict what each view hides, compare (eq. 2 to 4)."""
        assert self.objective is not None
        image = batch["image"]  # (B, C, H, W)
        mask = draw_masks(self.masks, self.mask_ratio, self.network.num_patches, self.step_generator())  # (n, L)
        reconstruction = reconstruct(self.network, image, mask)  # (B, C, H, W)
        terms = self.objective(image, reconstruction)
        for name, term in terms.items():
            self.log(
                f"train/{name}",
                term.detach(),
                prog_bar=name == "loss",
                on_step=False,
                on_epoch=True,
                batch_size=len(image),
                sync_dist=self.trainer.world_size > 1,
            )
        return terms["loss"]

    def step_generator(self) -> Generator:
        """Generator of this batch's masks: a resumed run draws what the uninterrupted one would have drawn."""
        batch = self.trainer.fit_loop.total_batch_idx  # not the step, which stands still while gradients accumulate
        return Generator().manual_seed(derive_seed("masks", self.seed, batch, self.global_rank))

    def on_train_start(self) -> None:
        """A resumed run has averaged its steps so far already, and its rates may have been changed."""
        for config in self.trainer.lr_scheduler_configs:
            schedule, optimizer = config.scheduler, config.scheduler.optimizer
            assert isinstance(schedule, LambdaLR)
            schedule.base_lrs = [optimizer.defaults["lr"] for _ in optimizer.param_groups]
            for group, factor in zip(optimizer.param_groups, schedule.lr_lambdas, strict=True):
                group["lr"] = optimizer.defaults["lr"] * factor(schedule.last_epoch)
        self.averaged_step = self.global_step

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Follow the weights with their average, once a step however many batches it takes."""
        if self.ema is not None and self.global_step > self.averaged_step:
            self.ema.update(self.network)
            self.averaged_step = self.global_step

    def on_train_epoch_end(self) -> None:
        """Stop a run whose loss is no number any more; the checkpoints of earlier epochs are kept."""
        loss = self.trainer.callback_metrics.get("train/loss")
        if loss is not None and not torch.isfinite(loss):
            raise UserError(f"the loss is {float(loss)} in epoch {self.current_epoch}: {DIVERGED}")

    def configure_optimizers(self) -> Any:
        """Weight decay on matrices only; warm-up and half cosine by the step (He 2021)."""
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2]},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = self.optimizer(groups)
        total = int(self.trainer.estimated_stepping_batches)
        warmup = self.warmup_epochs * total / max(self.trainer.max_epochs or 1, 1)
        schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def score(self, batch: Batch) -> Scores:
        """Score a batch with the averaged weights if there are any."""
        network = self.network if self.ema is None else self.ema.network
        return self.scorer(network, batch["image"])  # type: ignore[arg-type]


def warmup_cosine(step: int, warmup: float, total: int) -> float:
    """Factor of the learning rate at a step: linear to 1 over `warmup` steps, then half a cosine to 0 at `total`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1.0, total - warmup))))
