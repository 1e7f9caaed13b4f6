"""Detectors in feature space: images are scored by how badly predictors predict a frozen backbone's features."""

from collections.abc import Callable, Sequence
from typing import Annotated, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from adlight.detection.detector import AnomalyDetector
from adlight.detection.inference import full_precision
from adlight.detection.maps import hide_outside
from adlight.features.backbones import Backbone
from adlight.features.cells import extract_features, standardize
from adlight.features.pictures import PatchPictures
from adlight.features.predictor import Predictor, choose
from adlight.features.residuals import ResidualMap
from adlight.features.scorer import CellScorer, score_cells
from adlight.settings import Built, checked
from adlight.types import Batch, Scores


class FeatureDetector(AnomalyDetector):
    """Scores images by how much their features differ from the predicted features.

    Args:
        backbone: computes the features; frozen.
        predictors: constructors of the predictors, by name; each takes the number of channels.
        scorer: computes image and pixel scores from cell scores.
        members: names of the predictors to use; None uses all.

    Raises:
        UserError: a member is unknown.
    """

    mean: Tensor
    std: Tensor

    @checked
    def __init__(
        self,
        backbone: Built[Backbone],
        predictors: Annotated[dict[str, Callable[..., Predictor]], Field(min_length=1)],
        scorer: Built[CellScorer],
        members: Annotated[Sequence[str], Field(min_length=1)] | None = None,
    ) -> None:
        super().__init__()
        channels = backbone.channels
        used = {name: predictors[name](channels=channels) for name in choose(predictors, members)}
        self.backbone, self.predictors, self.scorer = backbone, nn.ModuleDict(used), scorer
        self.residual_map = ResidualMap(used, channels)
        self.pictures = PatchPictures(channels)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.register_buffer("centers", torch.empty(0, channels))
        self.unused = nn.Parameter(torch.zeros(()))  # DDP needs a module with parameters

    @property
    def members(self) -> dict[str, Predictor]:
        """The predictors in use, by name."""
        return cast(dict[str, Predictor], dict(self.predictors.items()))

    def score(self, batch: Batch) -> Scores:
        """Score a batch."""
        with full_precision(batch["image"].device):
            return self.score_features(extract_features(self.backbone, batch), batch)

    def score_features(self, features: Tensor, batch: Batch, fold: Tensor | None = None) -> Scores:
        """Score the images of a batch by their features (B, h, w, C), as the backbone computes them.

        `fold` (B,) holds the folds of held-out images, see `ResidualMap.forward`.
        """
        image, size, content = batch["image"], batch.get("size"), batch.get("content")
        features = standardize(features, self.mean, self.std)  # the same name, so that the raw features are freed
        score, pixel, maps, residual = score_cells(features, self.members, self.residual_map, self.scorer, batch, fold)

        def reconstruct(rows: slice) -> Tensor:  # on demand: it takes a fifth of the time, and few are viewed
            predicted = features[rows] - residual[rows]  # (b, h, w, C)
            pictures = self.pictures(predicted, image[rows], None if size is None else size[rows])
            return hide_outside(pictures, image[rows], None if content is None else content[rows])

        return Scores(image=score, pixel=pixel, reconstruction=reconstruct, cells=maps, residual=residual)
