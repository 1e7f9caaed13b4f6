"""Detection by the distance to the closest image that a baseline can produce."""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from adlight.baselines.networks import PCA, NearestNeighbours
from adlight.data.frames import content_of
from adlight.detection.detector import AnomalyDetector
from adlight.detection.maps import ReconstructionError, Reduction, Score
from adlight.settings import Built, PositiveShare, checked
from adlight.types import Batch, Scores


class ResidualScorer:
    """Scores images by their distance, and pixels by their difference, to the closest image of a baseline.

    Args:
        score: error of a pixel, see `ReconstructionError`.
        reduce: image score: the baseline's `distance`, or `mean`, `max` or `topk` of the map.
        smoothing, topk: see `ReconstructionError`.
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
        image = batch["image"]
        with torch.autocast(image.device.type, enabled=False):  # in bf16 many scores would tie
            reconstruction, distance = network(image, counted(batch))
        score, pixel = self.error(image, reconstruction, batch.get("size"), batch.get("content"))  # (B,), (B, H, W)
        return Scores(image=distance if self.by_distance else score, pixel=pixel, reconstruction=reconstruction)


class BaselineDetector(AnomalyDetector):
    """Detects images that are far from the closest image that a baseline can produce.

    Args:
        network: the baseline.
        scorer: scores images with the baseline.
    """

    @checked
    def __init__(self, network: Built[NearestNeighbours | PCA], scorer: Built[ResidualScorer]) -> None:
        super().__init__()
        self.network, self.scorer = network, scorer
        self.unused = nn.Parameter(torch.zeros(()))  # DDP needs a module with parameters

    def score(self, batch: Batch) -> Scores:
        """Score a batch."""
        return self.scorer(self.network, batch)


def counted(batch: Batch) -> Tensor | None:
    """Return the pixels of a batch that count, (B, H, W) bool; None for all."""
    return content_of(batch) if "size" in batch or "content" in batch else None
