"""Baselines as detectors: one epoch collects the training images, its end fits them; the rest is as for all."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from adlight.baselines.detector import BaselineDetector, ResidualScorer, counted
from adlight.baselines.distortion import ImageDistortionModel
from adlight.baselines.networks import PCA, NearestNeighbours
from adlight.detection.crossfitting import advise_folds, count_smallest_fit, fetch, image_numbers_of, split_folds
from adlight.detection.module import AnomalyModule
from adlight.settings import Built, checked
from adlight.types import Batch, Scores


class BaselineModule(BaselineDetector, AnomalyModule):
    """Fit nearest neighbours or principal components to the training images: no gradient, no optimizer.

    All processes fit the same images in the same order. A second epoch fits them anew.

    Args:
        network: what is fitted.
        scorer: scores images with it.
    """

    @checked
    def __init__(
        self,
        network: Built[NearestNeighbours | ImageDistortionModel | PCA],
        scorer: Built[ResidualScorer],
    ) -> None:
        super().__init__(network, scorer)
        self.automatic_optimization = False
        self.seen: list[tuple[Tensor, ...]] = []  # images, their indices, what counts in them

    def describe(self) -> list[str]:
        """Say what was fitted."""
        return [f"baseline: {self.network.describe()}"]

    def on_train_start(self) -> None:
        """Refuse what cannot be fitted before any of it is collected."""
        count, folds = len(self.datamodule.datasets["train"]), self.calibration.folds
        self.network.check(count)
        if folds > 1 and self.datamodule.augmentation is None:
            with advise_folds(folds):
                self.network.check(count_smallest_fit(count, folds))

    def on_train_epoch_start(self) -> None:
        """Forget the last epoch's images."""
        self.seen = []

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect images, in the 8 bits that they have."""
        content = counted(batch)
        known = () if content is None else (content,)
        self.seen.append(((batch["image"] * 255).round().to(torch.uint8), batch["index"], *known))

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Fit after the last batch, before the validation: the images of all processes by index, each once."""
        if not self.trainer.is_last_batch:
            return
        gathered: Any = [self.all_gather(torch.cat(parts)) for parts in zip(*self.seen, strict=True)]
        image, index, *content = gathered
        row_of = {number: row for row, number in enumerate(index.flatten().tolist())}
        rows = [row_of[number] for number in sorted(row_of)]
        self.network.fit(image.flatten(0, -4)[rows], *(one.flatten(0, -3)[rows] for one in content))
        self.seen = []

    def cross_fit(self, folds: int) -> Iterator[tuple[Batch, Scores]]:
        """Score the training images by networks fitted to the other folds; none where they are augmented to fit."""
        data, trainer = self.datamodule, self.trainer
        if data.augmentation is not None:
            return
        with torch.inference_mode(False):  # an evaluation reads them now
            data.setup("fit")
        dataset = data.datasets["train"]
        with advise_folds(folds):
            self.network.check(count_smallest_fit(len(dataset), folds))
        for rest, fold in split_folds(image_numbers_of(dataset), folds, trainer.global_rank, trainer.world_size):
            network = deepcopy(self.network)
            others = dataset.__getitems__(rest.tolist())
            content = counted(others)
            network.fit(others["image"].to(self.device), None if content is None else content.to(self.device))
            for part in fold.split(data.eval_batch_size):
                batch = fetch(dataset, part, self.device)
                yield batch, self.scorer(network, batch)

    def configure_optimizers(self) -> Any:
        """Give none."""
        return []
