"""Detector by rotation: the surprise at which way up an image is, added to a score of frozen features."""

from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import Field, NonNegativeFloat
from torch import Tensor

from adlight.features.backbones import Backbone
from adlight.features.detector import FeatureDetector
from adlight.features.predictor import Predictor
from adlight.features.scorer import CellScorer
from adlight.rotation.network import RotationNetwork
from adlight.settings import Built, checked
from adlight.types import Batch, Scores

SURE = 0.01  # losses far below it are alike: the network is sure of the image


class RotationDetector(FeatureDetector):
    """Score images by frozen features and by the loss L of a network that tells rotations of normal images apart.

    The image score is the predictors' plus weight * log(L + 0.01): losses of normal images are near 0, and those of
    others spread over orders of magnitude. The map is the predictors'.

    Args:
        backbone, predictors, scorer, members: see `FeatureDetector`.
        network: tells rotations apart.
        weight: of its log loss.
    """

    takes_padding = False

    @checked
    def __init__(
        self,
        backbone: Built[Backbone],
        predictors: Annotated[dict[str, Callable[..., Predictor]], Field(min_length=1)],
        scorer: Built[CellScorer],
        network: Built[RotationNetwork],
        weight: NonNegativeFloat = 0.3,
        members: Annotated[Sequence[str], Field(min_length=1)] | None = None,
    ) -> None:
        super().__init__(backbone, predictors, scorer, members)
        self.network, self.weight = network, weight

    def score_features(self, features: Tensor, batch: Batch, fold: Tensor | None = None) -> Scores:
        """Score the images of a batch by their features, and by their rotations; see `FeatureDetector`."""
        scores = super().score_features(features, batch, fold)
        surprise = (self.network.loss(batch["image"].float()) + SURE).log()  # (B,)
        return Scores(**{**scores, "image": scores["image"] + self.weight * surprise})
