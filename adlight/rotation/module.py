"""Training of a network that classifies rotations of normal images, combined with DN2."""

from collections.abc import Callable
from typing import Any

import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.optim import Optimizer

from adlight.detection.module import AnomalyModule
from adlight.detection.optimization import log_terms, schedule_by_step, step_rng
from adlight.features.backbones import Backbone
from adlight.features.cache import FeatureCache
from adlight.features.cells import TrainingCells, channel_statistics
from adlight.memory.dn2 import DeepNearestNeighbours
from adlight.rng import to_device
from adlight.rotation.detector import RotationDetector
from adlight.rotation.network import RotationNetwork
from adlight.settings import Built, PathName, Share, checked
from adlight.types import Batch


class RotationModule(RotationDetector, AnomalyModule):
    """Trains a network to predict by how many quarter turns a normal image was rotated (Gidaris 2018).

    Trained on one class, it is unsure about other classes (Golan and El-Yaniv 2018; Hendrycks 2019; their networks
    start from random weights). Half of the images are mirrored first. DN2 is fitted before the first epoch.

    Args:
        backbone, neighbours, network, weight: see `RotationDetector`.
        optimizer: constructor of the network's optimizer.
        warmup: fraction of the steps in which the learning rate rises linearly; half a cosine to 0 follows.
        cache: folder that keeps the training images' features between runs; None keeps them in memory.
    """

    @checked
    def __init__(
        self,
        backbone: Built[Backbone],
        neighbours: Callable[..., DeepNearestNeighbours],
        network: Built[RotationNetwork],
        optimizer: Callable[..., Optimizer],
        weight: NonNegativeFloat = 0.2,
        warmup: Share = 0.05,
        cache: PathName | None = None,
    ) -> None:
        super().__init__(backbone, neighbours, network, weight)
        self.optimizer, self.warmup, self.cache = optimizer, warmup, FeatureCache(backbone, cache)

    def describe(self) -> list[str]:
        """Describe the networks and the fitted DN2."""
        backbone, network = self.backbone, self.network
        return [
            f"features: {backbone.name} ({', '.join(backbone.layers)}); {self.neighbours.summary()}",
            f"rotations: {network.name} at {network.side} pixels, weight {self.weight:g}",
        ]

    def on_fit_start(self) -> None:
        """Fit DN2 to the training images."""
        self.neighbours.check(len(self.datamodule.datasets["train"]))
        features = self.cache.features_of(self.datamodule, "train", self.device)
        self.mean, self.std = (statistic.to(self.device) for statistic in channel_statistics(features))
        self.neighbours.fit(TrainingCells(features, self.mean, self.std))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the rotation loss of images, half of them mirrored."""
        rng, image = step_rng(self, "rotation", self.datamodule.seed), batch["image"]
        mirrored = to_device(torch.rand(len(image), generator=rng) < 0.5, image.device)  # (B,)
        loss = self.network.loss(torch.where(mirrored[:, None, None, None], image.flip(3), image)).mean()
        log_terms(self, {"loss": loss}, len(image))
        return loss

    def configure_optimizers(self) -> Any:
        """Build the optimizer, with linear warmup and half a cosine."""
        return schedule_by_step(self, self.optimizer(self.network.parameters()), self.warmup)
