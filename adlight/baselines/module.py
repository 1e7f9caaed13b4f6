"""Baselines as detectors: one epoch collects the training images, its end fits them; the rest is as for all."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from adlight.baselines.networks import PCA, NearestNeighbours
from adlight.data.frames import content_of
from adlight.detection.crossfitting import advise_folds, fetch, fewest, split_folds
from adlight.detection.maps import ReconstructionError, Reduction, Score
from adlight.detection.module import AnomalyModule
from adlight.settings import Built, PositiveShare, checked
from adlight.types import Batch, Scores


class ResidualScorer:
    """Score images by their distance, and pixels by their difference, to the closest image that a baseline can make.

    Args:
        score: error of a pixel, see `ReconstructionError`.
        reduce: image score: `distance`, as the network measures it; or `mean`, `max` or `topk` of the map.
        smoothing, topk: see `ReconstructionError`.

    Raises:
        ValueError: an unknown name, or a number out of range.
    """

    @checked
    def __init__(
        self,
        score: Score = "mse",
        reduce: Literal["distance"] | Reduction = "distance",
        smoothing: NonNegativeFloat = 1.0,
        topk: PositiveShare = 0.01,
    ) -> None:
        self.by_distance = reduce == "distance"
        self.error = ReconstructionError(score, "mean" if reduce == "distance" else reduce, smoothing, topk)

    @torch.no_grad()
    def __call__(self, network: Callable[..., tuple[Tensor, Tensor]], batch: Batch) -> Scores:
        """Score images by the closest image and the distance to it."""
        image, content = batch["image"], _content(batch)
        with torch.autocast(image.device.type, enabled=False):  # in bf16 many scores would tie
            reconstruction, distance = network(image, content)
        size, region = batch.get("size"), batch.get("content")
        score, pixel = self.error(image, reconstruction, size, region)  # (B,), (B, H, W)
        return Scores(image=distance if self.by_distance else score, pixel=pixel, reconstruction=reconstruction)


class BaselineModule(AnomalyModule):
    """Fit nearest neighbours or principal components to the training images: no gradient, no optimizer.

    All processes fit the same images in the same order. A second epoch fits them anew.

    Args:
        network: what is fitted.
        scorer: scores images with it.
    """

    @checked
    def __init__(
        self,
        network: Built[NearestNeighbours | PCA],
        scorer: Built[ResidualScorer],
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network, self.scorer = network, scorer
        self.unused = nn.Parameter(torch.zeros(()))  # DDP refuses a module without parameters
        self.seen: list[tuple[Tensor, ...]] = []  # images, their indices, what counts in them

    def describe(self) -> list[str]:
        """Say what was fitted."""
        return [f"baseline: {self.network.describe()}"]

    def on_train_start(self) -> None:
        """Refuse what cannot be fitted before any of it is collected."""
        count, folds = len(self.datamodule.records("train")), self.calibration.folds
        self.network.check(count)
        if folds > 1 and self.datamodule.augmentation is None:
            with advise_folds(folds):
                self.network.check(fewest(count, folds))

    def on_train_epoch_start(self) -> None:
        """Forget the last epoch's images."""
        self.seen = []

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect images, in the 8 bits that they have."""
        content = _content(batch)
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
            self.network.check(fewest(len(dataset), folds))
        for rest, fold in split_folds(len(dataset), folds, trainer.global_rank, trainer.world_size):
            network = deepcopy(self.network)
            others = dataset.__getitems__(rest.tolist())
            content = _content(others)
            network.fit(others["image"].to(self.device), None if content is None else content.to(self.device))
            for part in fold.split(data.eval_batch_size):
                batch = fetch(dataset, part, self.device)
                yield batch, self.scorer(network, batch)

    def configure_optimizers(self) -> Any:
        """Give none."""
        return []

    def score(self, batch: Batch) -> Scores:
        """Score a batch."""
        return self.scorer(self.network, batch)


def _content(batch: Batch) -> Tensor | None:
    return content_of(batch) if "size" in batch or "content" in batch else None
