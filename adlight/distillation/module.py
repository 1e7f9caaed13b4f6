"""Multiresolution knowledge distillation (Salehi 2021, MKD)."""

from collections.abc import Callable
from typing import Any

from pydantic import NonNegativeFloat
from torch import Tensor
from torch.optim import Optimizer

from adlight.detection.module import AnomalyModule
from adlight.detection.optimization import average_over_processes, log_terms, schedule_by_step
from adlight.distillation.network import Cloner, distillation_loss
from adlight.distillation.scorer import DistillationScorer, MKDDetector
from adlight.features.backbones import Backbone
from adlight.settings import Built, Share, checked
from adlight.types import Batch


class MKDModule(MKDDetector, AnomalyModule):
    """Trains a cloner to match the layers of a frozen network in direction and value; it fails on anomalies.

    Differences from the original: any `Backbone` can be the frozen network (VGG-16 in the original), the cloner has
    group norms, the learning rate has a warm-up and a decay, and the default map compares the layers cell by cell (the
    original uses `gradient`, with a morphological opening after the threshold).

    Args:
        backbone, network, scorer, value: see `MKDDetector`.
        optimizer: constructor of the cloner's optimizer.
        warmup: fraction of the steps in which the learning rate rises linearly; half a cosine to 0 follows.
    """

    @checked
    def __init__(
        self,
        backbone: Built[Backbone],
        network: Callable[..., Cloner],
        scorer: Built[DistillationScorer],
        optimizer: Callable[..., Optimizer],
        value: NonNegativeFloat | None = None,
        warmup: Share = 0.05,
    ) -> None:
        super().__init__(backbone, network, scorer, value)
        self.optimizer, self.warmup = optimizer, warmup

    def describe(self) -> list[str]:
        """Describe the frozen network and its layers."""
        return [f"distilled: {self.backbone.name} ({', '.join(self.backbone.layers)})"]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the distillation loss of a batch; the first batch fixes the weight of L_val."""
        direction, value = (loss.mean() for loss in distillation_loss(*self.mimic(batch["image"])))
        if self.first_ratio.isnan():
            (ratio,) = average_over_processes([(direction / value).detach()])
            self.first_ratio.copy_(ratio)
        terms = {"direction": direction, "value": self.weight * value}
        terms["loss"] = terms["direction"] + terms["value"]
        log_terms(self, terms, len(batch["image"]))
        return terms["loss"]

    def configure_optimizers(self) -> Any:
        """Build the optimizer, with linear warmup and half a cosine."""
        return schedule_by_step(self, self.optimizer(self.network.parameters()), self.warmup)
