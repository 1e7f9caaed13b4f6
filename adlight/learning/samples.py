"""Training samples of the head: cells of held-out normal images, and of labelled images.

Letters: N cells, n tiles of an image (1 if it is not tiled), h x w cells, D features of a cell, K folds.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from adlight.data.datamodule import AnomalyDataModule
from adlight.data.source import Source
from adlight.detection.categories import CategoryRule
from adlight.detection.module import AnomalyModule
from adlight.learning.cells import (
    Cells,
    Head,
    extract_cells,
    fit_folds,
    measure_coverage,
    select_defect_cells,
    select_normal_cells,
    to_arrays,
)
from adlight.learning.detector import LearnedDetector
from adlight.learning.module import image_numbers
from adlight.learning.scoring import score_images
from adlight.types import Batch, Record, Scores, UserError, unknown_name

ITEMS = 500  # approximate number of held-out normal images or tiles whose cells are kept
HIGH = 0.995  # quantile of normal cells above which a cell of a defect without a mask counts as defective


class Normals(NamedTuple):
    """Cells of held-out normal images."""

    cells: Cells  # (N,), (N, D)
    fold: Tensor  # (N,) in 0...K - 1


class Labelled(NamedTuple):
    """A labelled image, scored by the frozen detector."""

    label: int  # 0 normal, 1 defect
    category: str  # empty if it is unknown
    tile_scores: Tensor  # (n,)
    cells: Cells  # (n, h, w), (n, h, w, D)
    covered: Tensor | None  # (n, h, w), share of each cell that the mask covers; None without a mask
    size: Tensor | None  # (1, 2), height and width of a padded image
    content: Tensor | None = None  # (n, H, W) bool, region of interest

    @property
    def score(self) -> float:
        """Score of the image: the largest of its tiles."""
        return self.tile_scores.max().item()


class _Collector(pl.Callback):
    """Keeps the cells of normal images during a validation."""

    def __init__(self, copies: int, folds: int, items: int) -> None:
        self.copies, self.folds, self.step = copies, folds, max(1, math.ceil(items / ITEMS))
        if folds > 1 and self.step % folds == 0:
            self.step += 1  # with a multiple of K, some folds would be empty
        self.parts: list[Normals] = []

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        number = image_numbers(batch, self.copies)
        kept = (batch["label"] == 0) & (number % self.step == 0)
        if not kept.any():
            return
        cells = extract_cells(batch, cast(Scores, outputs))
        cells = Cells(cells.score[kept], cells.features[kept])
        inside = ~cells.score.isnan()  # (b, h, w)
        fold = (number[kept] % self.folds)[:, None, None].expand(inside.shape)
        self.parts.append(Normals(select_normal_cells(cells).to("cpu"), fold[inside].cpu()))


class CategoryNames:
    """Names the category of labelled images; the name is empty if the thresholds of all categories together apply.

    The module has the thresholds; `asked` is as in `CategoryRule`.
    """

    def __init__(self, module: AnomalyModule, asked: str | None) -> None:
        self.rule = CategoryRule(asked, module.calibration, module.classifier)

    def of_record(self, record: Record) -> str:
        """Name a record's category by its label or path; empty also if the image's looks will decide."""
        if record.category and record.category not in self.rule.known:
            raise UserError(f"{record.path}: {unknown_name('category', record.category, self.rule.known)}")
        return record.category or ("" if self.rule.by_looks else self.rule.of_path(Path(record.path)) or "")

    def of_image(self, record: Record, batch: Batch) -> str:
        """Name a record's category, if need be by the looks of its image, which is read as `batch`."""
        if record.category or not self.rule.by_looks:
            return record.category
        return self.rule([Path(record.path)], *to_arrays(batch))[0] or ""


def held_out_normals(module: AnomalyModule, data: AnomalyDataModule, trainer: pl.Trainer, folds: int) -> Normals:
    """Validate a module, which refits its residuals, and collect the cells of about 500 normal images or tiles."""
    data.setup("validate")
    collector = _Collector(data.val_defects, folds, len(data.datasets["val"]))
    before, module.calibration.folds = module.calibration.folds, 0  # these thresholds are not used
    callbacks = cast(list[pl.Callback], trainer.callbacks)  # type: ignore[attr-defined]
    callbacks.append(collector)
    try:
        trainer.validate(module, data, verbose=False)
    finally:
        callbacks.remove(collector)
        module.calibration.folds = before
    score, features = (torch.cat(parts) for parts in zip(*(part.cells for part in collector.parts), strict=True))
    return Normals(Cells(score, features), torch.cat([part.fold for part in collector.parts]))


def score_labelled(
    module: AnomalyModule,
    records: Sequence[Record],
    data: AnomalyDataModule,
    precision: str,
    name_category: Callable[[Record, Batch], str],
) -> list[Labelled]:
    """Score labelled images by a frozen detector, with the frame, tiles and region of interest of `data`.

    Raises:
        UserError: an image cannot be read, or its mask lies outside the frame or the region of interest.
    """
    found = []
    for record, batch, scores, cells in score_images(module, records, Source(), data, precision):
        covered = measure_coverage(batch["mask"], *cells.score.shape[1:]) if record.mask else None
        if covered is not None and not covered.any():
            raise UserError(f"{record.path}: its mask {record.mask} marks nothing inside the detector's field of view")
        size, content = batch.get("size"), batch.get("content")
        category = name_category(record, batch)
        found.append(Labelled(record.label, category, scores["image"], cells, covered, size, content))
    return found


def fit_heads(normals: Normals, labelled: Sequence[Labelled], folds: int) -> tuple[Head, tuple[Head, ...]]:
    """Fit a head to held-out normal images and labelled images and, for each of K folds, a head without the fold.

    Labelled defect i and labelled normal image i are in fold i % K.
    """
    high = float(np.quantile(normals.cells.score.numpy(), HIGH))
    own = [select_normal_cells(image.cells) for image in labelled if not image.label]
    cells = Cells(*(torch.cat(parts) for parts in zip(normals.cells, *own, strict=True)))
    own_folds = [torch.full((len(part.score),), i % folds) for i, part in enumerate(own)]
    defects = [select_defect_cells(image.cells, image.covered, high) for image in labelled if image.label]
    return fit_folds(cells, torch.cat([normals.fold, *own_folds]), defects, folds)


def score_learned(learned: LearnedDetector, image: Labelled, row: int, frame: tuple[int, int]) -> float:
    """Score a labelled image by the head in a row of `learned.weight`; `frame` is the height and width of its tiles."""
    if not len(learned.weight):
        return image.score
    device, rows = learned.weight.device, torch.full((len(image.tile_scores),), row)
    size, content = (None if value is None else value.to(device) for value in (image.size, image.content))
    change = learned.change(image.cells.to(device), rows, torch.Size(frame), size, content)[1]
    return (image.tile_scores.double() + change.double().cpu()).max().item()


def score_unseen(learned: LearnedDetector, labelled: Sequence[Labelled], frame: tuple[int, int]) -> Tensor:
    """Score each labelled image by the head fitted without the image's fold. -> (n,)."""
    counts, scores = [0, 0], []
    for image in labelled:
        row = 1 + counts[image.label] % learned.folds
        counts[image.label] += 1
        scores.append(score_learned(learned, image, row, frame))
    return torch.tensor(scores)
