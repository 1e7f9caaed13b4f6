"""What there is to learn from: cells of held-out normal images, and of labelled ones.

Letters: B images, N cells, D features of a cell, K folds.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from adlight.data.datamodule import AnomalyDataModule
from adlight.data.dataset import CachedImageDataset
from adlight.data.source import Source
from adlight.detection.categories import CategoryRule
from adlight.detection.crossfitting import fetch
from adlight.detection.inference import autocast_dtype, inference
from adlight.detection.module import AnomalyModule
from adlight.learning.detector import LearnedDetector
from adlight.learning.evidence import Evidence, evidence_of, share_of_cells, to_arrays
from adlight.learning.head import HIGH, Head, defect_cells, fit_folds, normal_cells
from adlight.learning.module import fold_of
from adlight.types import Batch, Record, Scores, UserError, unknown_name

BATCH, IMAGES = 16, 500  # at once; held-out normal images whose cells are kept, about


class Normals(NamedTuple):
    """Cells of held-out normal images."""

    cells: Evidence  # (N,), (N, D)
    fold: Tensor  # (N,) in 0...K - 1


class Labelled(NamedTuple):
    """A labelled image, scored by the frozen detector."""

    label: int  # 0 normal, 1 defect
    category: str  # empty where it is not known
    score: float
    found: Evidence  # (1, h, w), (1, h, w, D)
    covered: Tensor | None  # (h, w), share of each cell that its mask covers
    size: Tensor | None  # (1, 2), height and width where it is padded
    content: Tensor | None = None  # (1, H, W) bool, the region of interest


class _Collector(pl.Callback):
    """Keeps the cells of normal images of a validation."""

    def __init__(self, copies: int, folds: int, images: int) -> None:
        self.copies, self.folds, self.step = copies, folds, max(1, -(-images // IMAGES))
        self.step += folds > 1 and self.step % folds == 0  # every fold has some
        self.parts: list[Normals] = []

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        index = torch.div(batch["index"], 1 + self.copies, rounding_mode="floor")
        normal = (batch["label"] == 0) & (index % self.step == 0)
        if not normal.any():
            return
        found = evidence_of(batch, cast(Scores, outputs))
        inside = ~found.score[normal].isnan()  # (n, h, w)
        fold = fold_of(batch["index"][normal], self.copies, self.folds)[:, None, None].expand(inside.shape)
        cells = normal_cells(Evidence(found.score[normal], found.features[normal]))
        self.parts.append(Normals(Evidence(*(one.cpu() for one in cells)), fold[inside].cpu()))


class CategoryNames:
    """Names the categories of labelled images, empty where the thresholds of all together decide.

    Args:
        module: with its thresholds.
        asked: as of `CategoryRule`.
    """

    def __init__(self, module: AnomalyModule, asked: str | None) -> None:
        self.rule = CategoryRule(asked, module.calibration, module.classifier)

    def of_record(self, record: Record) -> str:
        """Name that of a label as its table or its path has it; empty, too, where looks decide later."""
        if record.category and record.category not in self.rule.known:
            raise UserError(f"{record.path}: {unknown_name('category', record.category, self.rule.known)}")
        return record.category or ("" if self.rule.by_looks else self.rule.of_path(Path(record.path)) or "")

    def of_batch(self, records: Sequence[Record], batch: Batch) -> list[str]:
        """Name those of a batch."""
        if not self.rule.by_looks:
            return [record.category for record in records]
        found = self.rule([Path(record.path) for record in records], *to_arrays(batch))
        return [record.category or name or "" for record, name in zip(records, found, strict=True)]


def held_out_normals(module: AnomalyModule, data: AnomalyDataModule, trainer: pl.Trainer, folds: int) -> Normals:
    """Validate a module, which measures its residuals anew, and collect the cells of normal images, of 500 or so."""
    data.setup("validate")
    collector = _Collector(data.val_defects, folds, len(data.records("val")))
    before, module.calibration.folds = module.calibration.folds, 0  # its thresholds are found elsewhere
    callbacks = cast(list[pl.Callback], trainer.callbacks)  # type: ignore[attr-defined]
    callbacks.append(collector)
    try:
        trainer.validate(module, data, verbose=False)
    finally:
        callbacks.remove(collector)
        module.calibration.folds = before
    score, features = (torch.cat(parts) for parts in zip(*(one.cells for one in collector.parts), strict=True))
    return Normals(Evidence(score, features), torch.cat([one.fold for one in collector.parts]))


def score_labelled(
    module: AnomalyModule,
    records: Sequence[Record],
    data: AnomalyDataModule,
    precision: str,
    name_categories: Callable[[Sequence[Record], Batch], list[str]],
) -> list[Labelled]:
    """Score labelled images by a frozen detector.

    Args:
        module: with its weights.
        records: the images.
        data: whose frame the images are brought into, and its region of interest; its own images are not read.
        precision: the trainer's.
        name_categories: finds the categories of a batch.

    Raises:
        UserError: an image cannot be read, or nothing of its drawn defect is in the frame and region of interest.
    """
    known, settings = sorted({record.category for record in records}), {"frame": data.frame, "channels": data.channels}
    images = CachedImageDataset(Source(), records, known, **settings, cache=False, roi=data.roi)  # type: ignore[arg-type]
    found, device = [], module.device
    module.eval()
    for index in torch.arange(len(records)).split(BATCH):
        with inference(device, autocast_dtype(precision)):
            batch = fetch(images, index, device)
            scores = module.score(batch)
            cells = Evidence(*(one.cpu() for one in evidence_of(batch, scores)))
            covered = share_of_cells(batch["mask"], *cells.score.shape[1:]).cpu()
            some = [records[i] for i in index.tolist()]
            names, score = name_categories(some, batch), scores["image"].tolist()
        for i, record in enumerate(some):
            own, mask = Evidence(*(one[i : i + 1] for one in cells)), covered[i] if record.mask else None
            if mask is not None and not mask.any():
                raise UserError(f"{record.path}: its mask {record.mask} marks nothing of what the detector looks at")
            size, content = (batch[key][i : i + 1].cpu() if key in batch else None for key in ("size", "content"))
            found.append(Labelled(record.label, names[i], score[i], own, mask, size, content))
    return found


def fit_heads(normals: Normals, labelled: Sequence[Labelled], folds: int) -> tuple[Head, tuple[Head, ...]]:
    """Fit a head to held-out normal images and labelled ones, and one without each fold (K of them).

    The i-th labelled defect is in fold i % K, and so is the i-th labelled normal image.
    """
    high = float(np.quantile(normals.cells.score.numpy(), HIGH))
    own = [normal_cells(one.found) for one in labelled if not one.label]
    parts = [normals.cells, *own]
    cells = Evidence(*(torch.cat(of) for of in zip(*parts, strict=True)))
    own_folds = [torch.full((len(one.score),), i % folds) for i, one in enumerate(own)]
    defects = [
        defect_cells(Evidence(one.found.score[0], one.found.features[0]), one.covered, high)
        for one in labelled
        if one.label
    ]
    return fit_folds(cells, torch.cat([normals.fold, *own_folds]), defects, folds)


def scores_unseen(learned: LearnedDetector, labelled: Sequence[Labelled], frame: tuple[int, int]) -> Tensor:
    """Score labelled images by heads that have not seen them. -> (n,)."""
    counts, scores = [0, 0], []
    for one in labelled:
        row = torch.tensor([1 + counts[one.label] % learned.folds])
        counts[one.label] += 1
        device = learned.weight.device
        found = Evidence(*(part.to(device) for part in one.found))
        shapes = (None if part is None else part.to(device) for part in (one.size, one.content))
        change = learned.change(found, row, torch.Size(frame), *shapes)[1] if len(learned.weight) else torch.zeros(1)
        scores.append(one.score + change.item())
    return torch.tensor(scores)
