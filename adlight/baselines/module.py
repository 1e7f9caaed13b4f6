"""Baselines as detectors: one epoch collects the training images, its end fits them, the rest is as for all."""

from typing import Any

import torch
from torch import Tensor, nn

from adlight.baselines.networks import PCA, NearestNeighbours
from adlight.baselines.scorer import ResidualScorer
from adlight.detection.module import AnomalyModule
from adlight.types import Batch, Scores


class BaselineModule(AnomalyModule):
    """Fits nearest neighbours or principal components to the training images: no gradient, no optimiser.

    All processes fit the same images in the same order. An epoch more than one fits them anew.

    Args:
        network: what is fitted.
        scorer: turns it into scores.
        objective: there is none.
    """

    def __init__(
        self,
        network: NearestNeighbours | PCA,
        scorer: ResidualScorer,
        objective: None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network, self.scorer = network, scorer
        self.unused = nn.Parameter(torch.zeros(()))  # DDP refuses a module without parameters
        self.images: list[Tensor] = []
        self.indices: list[Tensor] = []

    def describe(self) -> list[str]:
        """What was fitted."""
        return [f"baseline: {self.network.summary()}"]

    def on_train_start(self) -> None:
        """Refuse what cannot be fitted before any of it is collected."""
        self.network.check(len(self.datamodule.records("train")))

    def on_train_epoch_start(self) -> None:
        """Forget the last epoch's images."""
        self.images, self.indices = [], []

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect images, in the 8 bits that they have."""
        self.images.append((batch["image"] * 255).round().to(torch.uint8))
        self.indices.append(batch["index"])

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Fit after the last batch, before the validation: the images of all processes by index, each once."""
        if not self.trainer.is_last_batch:
            return
        index: Any = self.all_gather(torch.cat(self.indices))
        image: Any = self.all_gather(torch.cat(self.images))
        place = {number: row for row, number in enumerate(index.flatten().tolist())}
        self.network.fit(image.flatten(0, -4)[[place[number] for number in sorted(place)]])
        self.images, self.indices = [], []

    def configure_optimizers(self) -> Any:
        """None."""
        return []

    def score(self, batch: Batch) -> Scores:
        """Score a batch."""
        return self.scorer(self.network, batch["image"])
