"""A finished detector with a head fitted to labelled images."""

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from adlight.detection.detector import AnomalyDetector
from adlight.features.scorer import CellScorer
from adlight.learning.cells import Cells, Head, extract_cells
from adlight.settings import Built, checked
from adlight.types import Batch, Scores


class LearnedDetector(AnomalyDetector):
    """Adds the output of a linear head for each cell to a frozen detector's map and score.

    The image score changes by the same amount as the mean of the 1 % highest cells.

    Args:
        detector: the frozen detector.
        width: D, number of features of a cell.
        defects, normals: numbers of labelled defects and normal images that the head was fitted to.
        folds: K, number of folds of held-out normal images and of labelled images.

    Attributes:
        weight, bias: (1 + K, D) and (1 + K,); row 0 is the head, the other rows are heads fitted without one fold each.
            Empty before fitting.
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
        """Set the head fitted to all cells, and the heads fitted without one fold each."""
        self.weight = torch.stack([head.weight for head in (whole, *parts)]).to(self.weight)
        self.bias = torch.stack([head.bias for head in (whole, *parts)]).to(self.bias)

    @property
    def export_blocker(self) -> str | None:
        """Return the reason why the frozen detector cannot be exported, or None."""
        return self.detector.export_blocker

    def score(self, batch: Batch) -> Scores:
        """Score a batch."""
        scores = self.detector.score(batch)
        if not len(self.weight):
            return scores
        cells = extract_cells(batch, scores)
        rows, frame = self.rows_of(batch), scores["pixel"].shape[-2:]
        shift, image, pixel = self.change(cells, rows, frame, batch.get("size"), batch.get("content"))
        changed = {"image": scores["image"] + image, "pixel": scores["pixel"] + pixel, "cells": cells.score + shift}
        return Scores(**{**scores, **changed, "residual": cells.features})  # type: ignore[typeddict-item]

    def rows_of(self, batch: Batch) -> Tensor:
        """Return the row of `weight` for each image, (B,): row 0, the head fitted to all folds."""
        return torch.zeros_like(batch["index"])

    def change(
        self,
        cells: Cells,
        rows: Tensor,
        frame: torch.Size,
        size: Tensor | None = None,
        content: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute by how much the head changes cells (B, h, w), image scores (B,) and maps (B, H, W).

        `rows` (B,) holds each image's row of `weight`, `frame` the height and width of the images; `size` and `content`
        are as in `Batch`.
        """
        rows = rows.to(self.weight.device)
        shift = torch.einsum("bhwd,bd->bhw", cells.features, self.weight[rows]) + self.bias[rows, None, None]
        scores = cells.score, cells.score + shift
        (before, low), (after, high) = (self.cell_scorer(score, frame, size, content) for score in scores)
        return shift, after - before, high - low
