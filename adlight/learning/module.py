"""A finished detector with a head that labelled images have taught."""

from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from adlight.detection.module import AnomalyModule
from adlight.features.module import FeatureModule
from adlight.features.scorer import CellScorer
from adlight.learning.evidence import Evidence, evidence_of
from adlight.learning.head import Head
from adlight.settings import Built, checked
from adlight.types import Batch, Scores


class LearnedDetector(AnomalyModule):
    """Adds what a linear head says of each cell to a frozen detector's map and score.

    The image score changes by what the head changes in the mean of the 1 % highest cells. Held-out normal images, whose
    cells the head was fitted to, are scored by the head of the other folds: they calibrate the thresholds.

    Args:
        detector: the frozen one.
        width: D, features of a cell.
        defects, normals: labelled images that it has learned from.
        folds: K, of the held-out normal images and the labelled defects.

    Attributes:
        weight: (1 + K, D), the head's and those without each fold; no rows until it is fitted.
        bias: (1 + K,).
    """

    weight: Tensor
    bias: Tensor

    @checked
    def __init__(
        self,
        detector: Built[AnomalyModule],
        width: PositiveInt,
        defects: NonNegativeInt = 0,
        normals: NonNegativeInt = 0,
        folds: PositiveInt = 5,
    ) -> None:
        super().__init__()
        self.detector, self.folds = detector, folds
        self.takes_padding, self.classifier = detector.takes_padding, detector.classifier
        self.num_defects, self.num_normals = defects, normals
        self.scorer = CellScorer()
        self.register_buffer("weight", torch.empty(0, width))
        self.register_buffer("bias", torch.empty(0))
        self.validates = False

    def set_heads(self, whole: Head, parts: tuple[Head, ...]) -> None:
        """Take the head, and those without each fold."""
        self.weight = torch.stack([one.weight for one in (whole, *parts)]).to(self.weight)
        self.bias = torch.stack([one.bias for one in (whole, *parts)]).to(self.bias)

    def describe(self) -> list[str]:
        """Say what the detector is, and how many labels it has learned from."""
        return [*self.detector.describe(), f"learned from {self.num_defects} labelled defects"]

    def metadata(self) -> dict[str, Any]:
        """Give what belongs into a result's file."""
        return {**self.detector.metadata(), "labelled": {"defects": self.num_defects, "normals": self.num_normals}}

    def on_validation_epoch_start(self) -> None:
        """Begin the detector's validation too."""
        super().on_validation_epoch_start()
        self.detector.on_validation_epoch_start()
        self.validates = True

    def on_validation_epoch_end(self) -> None:
        """Calibrate; images are scored as unseen ones from now on."""
        super().on_validation_epoch_end()
        self.validates = False
        self._leave_split()

    def on_test_epoch_start(self) -> None:
        """Begin the detector's test too."""
        super().on_test_epoch_start()
        self.detector.on_test_epoch_start()

    def on_test_epoch_end(self) -> None:
        """Compute the results."""
        super().on_test_epoch_end()
        self._leave_split()

    def _leave_split(self) -> None:
        if isinstance(self.detector, FeatureModule):
            self.detector.split, self.detector.residual_map.folds = None, []

    def score(self, batch: Batch) -> Scores:
        """Score a batch."""
        rows = torch.zeros_like(batch["index"])
        if self.validates:
            rows = 1 + fold_of(batch["index"], self.datamodule.val_defects, self.folds)
        scores = self.detector.score(batch)
        if not len(self.weight):
            return scores
        found = evidence_of(batch, scores)
        cells, image, pixel = self.change(found, rows, scores["pixel"].shape[-2:], batch.get("size"))
        changed = {"image": scores["image"] + image, "pixel": scores["pixel"] + pixel, "cells": found.score + cells}
        return Scores(**{**scores, **changed, "residual": found.features})  # type: ignore[typeddict-item]

    def change(
        self, found: Evidence, rows: Tensor, frame: torch.Size, size: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute what the head changes. -> in cells (B, h, w), image scores (B,) and maps (B, H, W).

        Args:
            found: cells of some images.
            rows: (B,) of `weight`, by which head each is scored.
            frame: height and width of the images.
            size: (B, 2), those of the content of padded images.
        """
        rows = rows.to(self.weight.device)
        shift = torch.einsum("bhwd,bd->bhw", found.features, self.weight[rows]) + self.bias[rows, None, None]
        (before, low), (after, high) = (self.scorer(one, frame, size) for one in (found.score, found.score + shift))
        return shift, after - before, high - low


def fold_of(index: Tensor, copies: int, folds: int) -> Tensor:
    """Give the fold of held-out images, a normal one and its defective copies in one. (B,) -> (B,)."""
    return index // (1 + copies) % folds
