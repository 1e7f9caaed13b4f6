"""The detector: predictors of a frozen backbone's features, and the score of what they mispredict."""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from adlight.detection.detector import AnomalyDetector
from adlight.detection.inference import exactly
from adlight.detection.maps import hide_outside
from adlight.features.backbones import Backbone
from adlight.features.pictures import PatchPictures
from adlight.features.predictor import Predictor, extract_features, standardize
from adlight.features.residuals import ResidualMap
from adlight.features.scorer import CellScorer, score_cells
from adlight.settings import Built, checked
from adlight.types import Batch, Scores, UserError, unknown_name


class FeatureDetector(AnomalyDetector):
    """Images whose features are mispredicted are anomalous.

    Args:
        backbone: makes the features; frozen.
        predictors: by name; each is made from the number of channels.
        scorer: from cells to images and pixels.
        members: names of the predictors that are used; None: all.

    Raises:
        UserError: a member that there is not.
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
        made = {name: predictors[name](channels=channels) for name in choose(predictors, members)}
        self.backbone, self.predictors, self.scorer = backbone, nn.ModuleDict(made), scorer
        self.residual_map = ResidualMap(made, channels)
        self.pictures = PatchPictures(channels)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.register_buffer("centers", torch.empty(0, channels))
        self.unused = nn.Parameter(torch.zeros(()))  # DDP refuses a module without parameters

    @property
    def members(self) -> dict[str, Predictor]:
        """The predictors in use, by name."""
        return cast(dict[str, Predictor], dict(self.predictors.items()))

    def get_extra_state(self) -> dict[str, Any]:
        """Give the thresholds and, in place of its weights, the backbone's fingerprint."""
        return {**super().get_extra_state(), "backbone": self.backbone.fingerprint}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the thresholds; refuse a checkpoint of another backbone."""
        rest = dict(state)
        self.backbone.check_fingerprint(rest.pop("backbone", None))
        super().set_extra_state(rest)

    def score(self, batch: Batch) -> Scores:
        """Score a batch."""
        with exactly(batch["image"].device):
            return self.score_features(extract_features(self.backbone, batch), batch)

    def score_features(self, features: Tensor, batch: Batch, fold: Tensor | None = None) -> Scores:
        """Score the images of a batch by their features (B, h, w, C).

        Args:
            features: as the backbone makes them.
            batch: the images.
            fold: (B,) of held-out images, see `ResidualMap.forward`.
        """
        image, size, content = batch["image"], batch.get("size"), batch.get("content")
        cells = standardize(features, self.mean, self.std)
        score, pixel, maps, residual = score_cells(cells, self.members, self.residual_map, self.scorer, batch, fold)
        expected = cells - residual  # (B, h, w, C)

        def show(rows: slice) -> Tensor:  # only when asked for: a fifth of the time, and few are looked at
            shown = self.pictures(expected[rows], image[rows], None if size is None else size[rows])
            return hide_outside(shown, image[rows], None if content is None else content[rows])

        return Scores(image=score, pixel=pixel, reconstruction=show, cells=maps, residual=residual)


def choose(predictors: Iterable[str], members: Sequence[str] | None) -> list[str]:
    """Give the names that are asked for; all of them where `members` is None.

    Raises:
        UserError: a name that there is not, or none at all.
    """
    known = list(predictors)
    for name in (known if members is None else members) or [""]:
        if name not in known:
            raise UserError(f"members: {unknown_name('predictor', name, known)}")
    return known if members is None else list(members)
