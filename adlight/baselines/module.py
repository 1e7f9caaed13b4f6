"""Fitting of baselines: an epoch collects the training images, and its end fits the baseline to them."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from adlight.baselines.detector import (
    BaselineDetector,
    ResidualScorer,  # noqa: F401  # configs name it here
    counted,
)
from adlight.detection.crossfitting import check_folds, fetch, image_numbers_of, split_folds
from adlight.detection.module import AnomalyModule
from adlight.types import Batch, Scores


class BaselineModule(BaselineDetector, AnomalyModule):
    """Fits a baseline to the training images, without gradients; all processes fit to the same images in one order."""

    automatic_optimization = False
    seen: list[tuple[Tensor, ...]]  # images, their indices, and the pixels that count

    def describe(self) -> list[str]:
        """Describe the fitted baseline."""
        return [f"baseline: {self.network.describe()}"]

    def on_train_start(self) -> None:
        """Check the number of training images before collecting them."""
        count, folds = len(self.datamodule.datasets["train"]), self.calibration.folds
        self.network.check(count)
        if folds > 1 and self.datamodule.augmentation is None:
            check_folds(self.network.check, count, folds)

    def on_train_epoch_start(self) -> None:
        """Discard the images of the previous epoch; each epoch fits from scratch."""
        self.seen = []

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect images in 8 bits."""
        content = counted(batch)
        known = () if content is None else (content,)
        self.seen.append(((batch["image"] * 255).round().to(torch.uint8), batch["index"], *known))

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """After the last batch, and before validation, fit to the images of all processes, each once and in order."""
        if not self.trainer.is_last_batch:
            return
        gathered: Any = [self.all_gather(torch.cat(parts)) for parts in zip(*self.seen, strict=True)]
        image, index, *content = gathered
        row_of = {number: row for row, number in enumerate(index.flatten().tolist())}
        rows = [row_of[number] for number in sorted(row_of)]
        self.network.fit(image.flatten(0, -4)[rows], *(inside.flatten(0, -3)[rows] for inside in content))
        self.seen = []

    def cross_fit(self, folds: int) -> Iterator[tuple[Batch, Scores]]:
        """Score each fold of the training images by a network fitted to the others, unless images are augmented."""
        data, trainer = self.datamodule, self.trainer
        if data.augmentation is not None:
            return
        with torch.inference_mode(False):
            data.setup("fit")  # evaluation has not loaded the training images
        dataset = data.datasets["train"]
        check_folds(self.network.check, len(dataset), folds)
        for rest, fold in split_folds(image_numbers_of(dataset), folds, trainer.global_rank, trainer.world_size):
            network = deepcopy(self.network)
            others = dataset.__getitems__(rest.tolist())
            content = counted(others)
            network.fit(others["image"].to(self.device), None if content is None else content.to(self.device))
            for part in fold.split(data.eval_batch_size):
                batch = fetch(dataset, part, self.device)
                yield batch, self.scorer(network, batch)

    def configure_optimizers(self) -> Any:
        """Return no optimizer."""
        return []
