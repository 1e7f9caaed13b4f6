"""Multiresolution knowledge distillation (Salehi 2021, MKD)."""

from collections.abc import Callable
from typing import Any

from pydantic import NonNegativeFloat
from torch import Tensor
from torch.optim import Optimizer

from adlight.detection.module import AnomalyModule
from adlight.detection.optimization import log_terms, schedule_by_step, stop_if_diverged
from adlight.distillation.detector import MKDDetector
from adlight.distillation.network import Cloner, distillation_loss
from adlight.distillation.scorer import DistillationScorer
from adlight.features.backbones import Backbone
from adlight.gan.optimization import average_over_processes
from adlight.settings import Built, Share, checked
from adlight.types import Batch


class MKDModule(MKDDetector, AnomalyModule):
    """Train a cloner to give a frozen network's layers, in direction and value; where it fails, an image is anomalous.

    What differs from the original: the frozen network is any `Backbone` (theirs is VGG-16), the cloner has group norms,
    the learning rate warms up and falls, and the map compares cell by cell by default (theirs is `gradient`, with a
    morphological opening after the threshold).

    Args:
        backbone: the frozen network and the layers that are mimicked, from fine to coarse.
        network: makes the cloner for the layers' `shapes`.
        scorer: scores images by what is mimicked badly.
        optimizer: makes the optimizer from parameters.
        value: weight of L_val, see `MKDDetector`.
        warmup: share of the steps in which the learning rate rises; a half cosine to 0 follows.
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
        """Name the frozen network and its layers."""
        return [f"distilled: {self.backbone.name} ({', '.join(self.backbone.layers)})"]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compare the maps."""
        direction, value = (one.mean() for one in distillation_loss(*self.mimic(batch["image"])))
        if self.first_ratio.isnan():
            (ratio,) = average_over_processes([(direction / value).detach()])
            self.first_ratio.copy_(ratio)
        terms = {"direction": direction, "value": self.weight * value}
        terms["loss"] = terms["direction"] + terms["value"]
        log_terms(self, terms, len(batch["image"]))
        return terms["loss"]

    def configure_optimizers(self) -> Any:
        """Warm up, then half a cosine, by step."""
        return schedule_by_step(self, self.optimizer(self.network.parameters()), self.warmup)

    def on_train_epoch_end(self) -> None:
        """Stop once the loss is not finite; the checkpoints of earlier epochs are kept."""
        stop_if_diverged(self)
