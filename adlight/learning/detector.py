"""A finished detector with a head that labelled images have taught."""

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from adlight.detection.detector import AnomalyDetector
from adlight.features.scorer import CellScorer
from adlight.learning.evidence import Evidence, evidence_of
from adlight.learning.head import Head
from adlight.settings import Built, checked
from adlight.types import Batch, Scores


class LearnedDetector(AnomalyDetector):
    """Adds what a linear head says of each cell to a frozen detector's map and score.

    The image score changes by what the head changes in the mean of the 1 % highest cells.

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
        detector: Built[AnomalyDetector],
        width: PositiveInt,
        defects: NonNegativeInt = 0,
        normals: NonNegativeInt = 0,
        folds: PositiveInt = 5,
    ) -> None:
        super().__init__()
        self.detector, self.folds, self.classifier = detector, folds, detector.classifier
        self.num_defects, self.num_normals, self.takes_padding = defects, normals, detector.takes_padding
        self.cell_scorer = CellScorer()
        self.register_buffer("weight", torch.empty(0, width))
        self.register_buffer("bias", torch.empty(0))

    def set_heads(self, whole: Head, parts: tuple[Head, ...]) -> None:
        """Take the head, and those without each fold."""
        self.weight = torch.stack([one.weight for one in (whole, *parts)]).to(self.weight)
        self.bias = torch.stack([one.bias for one in (whole, *parts)]).to(self.bias)

    @property
    def export_blocker(self) -> str | None:
        """That of the frozen detector."""
        return self.detector.export_blocker

    def score(self, batch: Batch) -> Scores:
        """Score a batch."""
        scores = self.detector.score(batch)
        if not len(self.weight):
            return scores
        found = evidence_of(batch, scores)
        rows, frame = self.rows_of(batch), scores["pixel"].shape[-2:]
        cells, image, pixel = self.change(found, rows, frame, batch.get("size"), batch.get("content"))
        changed = {"image": scores["image"] + image, "pixel": scores["pixel"] + pixel, "cells": found.score + cells}
        return Scores(**{**scores, **changed, "residual": found.features})  # type: ignore[typeddict-item]

    def rows_of(self, batch: Batch) -> Tensor:
        """Give the row of `weight` by which each image is scored, (B,): the head of everything."""
        return torch.zeros_like(batch["index"])

    def change(
        self,
        found: Evidence,
        rows: Tensor,
        frame: torch.Size,
        size: Tensor | None = None,
        content: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute what the head changes. -> in cells (B, h, w), image scores (B,) and maps (B, H, W).

        Args:
            found: cells of some images.
            rows: (B,) of `weight`, by which head each is scored.
            frame: height and width of the images.
            size: (B, 2), those of the content of padded images.
            content: (B, H, W) bool, the region of interest.
        """
        rows = rows.to(self.weight.device)
        shift = torch.einsum("bhwd,bd->bhw", found.features, self.weight[rows]) + self.bias[rows, None, None]
        maps = found.score, found.score + shift
        (before, low), (after, high) = (self.cell_scorer(one, frame, size, content) for one in maps)
        return shift, after - before, high - low
