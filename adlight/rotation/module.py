"""Training of a network that tells rotations of normal images apart, beside predictors of frozen features."""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor
from torch.optim import Optimizer

from adlight.detection.optimization import log_terms, schedule_by_step, step_rng
from adlight.features.backbones import Backbone
from adlight.features.module import FeatureModule
from adlight.features.predictor import Predictor
from adlight.features.scorer import CellScorer
from adlight.rng import to_device
from adlight.rotation.detector import RotationDetector
from adlight.rotation.network import RotationNetwork
from adlight.settings import Built, Share, checked
from adlight.types import Batch, Scores


class RotationModule(RotationDetector, FeatureModule):
    """Train a network to tell by how many quarter turns a normal image was rotated (Gidaris 2018).

    Trained on one class, it is unsure of the others (Golan and El-Yaniv 2018; Hendrycks 2019, whose networks start from
    random weights). The predictors are fitted before the first epoch. Half of the images are mirrored first.

    Args:
        backbone, predictors, scorer, members: see `FeatureDetector`.
        network: tells rotations apart.
        optimizer: constructor of the optimizer of the network's weights.
        weight: of its log loss in the score, see `RotationDetector`.
        warmup: fraction of the steps in which the learning rate rises; half a cosine to 0 follows.
        settings: further arguments of `FeatureModule`.
    """

    @checked
    def __init__(
        self,
        backbone: Built[Backbone],
        predictors: Annotated[dict[str, Callable[..., Predictor]], Field(min_length=1)],
        scorer: Built[CellScorer],
        network: Built[RotationNetwork],
        optimizer: Callable[..., Optimizer],
        weight: NonNegativeFloat = 0.3,
        warmup: Share = 0.05,
        members: Annotated[Sequence[str], Field(min_length=1)] | None = None,
        **settings: Any,
    ) -> None:
        FeatureModule.__init__(self, backbone, predictors, scorer, optimizer, warmup, members=members, **settings)
        self.network, self.weight, self.automatic_optimization = network, weight, True

    def describe(self) -> list[str]:
        """Name the backbone, and describe what was fitted and trained."""
        network = self.network
        return [*super().describe(), f"rotations: {network.name} at {network.side} pixels, weight {self.weight:g}"]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the rotation loss of images, half of them mirrored."""
        rng, image = step_rng(self, "rotation", self.datamodule.seed), batch["image"]
        mirrored = to_device(torch.rand(len(image), generator=rng) < 0.5, image.device)  # (B,)
        loss = self.network.loss(torch.where(mirrored[:, None, None, None], image.flip(3), image)).mean()
        log_terms(self, {"loss": loss}, len(image))
        return loss + 0 * self.unused

    def cross_fit(self, folds: int) -> Iterator[tuple[Batch, Scores]]:
        """Score no training images: the network knows them."""
        return iter(())

    def configure_optimizers(self) -> Any:
        """Make the network's optimizer, with linear warmup followed by half a cosine."""
        assert self.optimizer is not None
        return schedule_by_step(self, self.optimizer([*self.network.parameters(), self.unused]), self.warmup)
