"""Scores of whole images from scored batches: tiles are joined, and the images of all processes collected."""

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from adlight.data.frames import content_of
from adlight.data.tiling import Canvas, Tiling
from adlight.types import Batch, Prediction, Scores, reconstruction_of

Row = TypeVar("Row")


class TileJoiner:
    """Joins consecutive tiles to images; without a tiling, batches pass unchanged.

    Unless `reconstruct` is set, the images stand in for their reconstructions.
    """

    def __init__(self, tiling: Tiling | None, reconstruct: bool = False) -> None:
        self.tiling, self.reconstruct = tiling, reconstruct
        self.image, self.seen, self.score = -1, 0, -torch.inf
        self.canvas: Canvas | None = None

    def __call__(self, batch: Batch, scores: Scores) -> Iterator[tuple[Batch, Scores]]:
        """Add a batch of tiles, and yield each image that it completes, as a batch of one, with its scores."""
        if self.tiling is None:
            if len(batch["index"]):
                yield batch, scores
            return
        shown = reconstruction_of(scores) if self.reconstruct else batch["image"][:, :0]
        layers = [scores["pixel"][:, None], batch["mask"][:, None], content_of(batch)[:, None], batch["image"], shown]
        maps = torch.cat([layer.float() for layer in layers], 1).cpu().numpy()  # (B, 3 + C or 3 + 2 C, h, w)
        for row, (image, top, left, height, width, count) in enumerate(batch["tile"].tolist()):
            if image != self.image or self.canvas is None:
                self.image, self.seen, self.score = image, 0, -torch.inf
                self.canvas = self.tiling.canvas(height, width, maps.shape[1])
            self.canvas.add((top, left), maps[row])
            self.seen, self.score = self.seen + 1, max(self.score, scores["image"][row].item())
            if self.seen == count:
                yield self._finish(batch, row, torch.from_numpy(self.canvas.finish()).to(batch["image"].device))
                self.canvas = None

    def _finish(self, batch: Batch, row: int, maps: Tensor) -> tuple[Batch, Scores]:
        channels = batch["image"].shape[1]
        pixel, mask, content = maps[0], maps[1] > 0.5, maps[2] > 0.5  # (H, W) each
        image, shown = maps[None, 3 : 3 + channels], maps[None, 3 + channels :]  # (1, C, H, W) each
        index = batch["tile"][row, :1]
        whole: Any = {
            "image": image,
            "mask": mask[None],
            "index": torch.where(batch["index"][row] < 0, -1 - index, index),  # negative for training images
            "label": batch["label"][row : row + 1],
            "category": batch["category"][row : row + 1],
        }
        if "content" in batch:
            whole["content"] = content[None]
        score = torch.tensor([self.score], dtype=torch.float64, device=maps.device)
        reconstruction = shown if self.reconstruct else image
        return whole, Scores(image=score, pixel=pixel.where(content, 0)[None], reconstruction=reconstruction)


def select_rows(batch: Batch, scores: Scores, rows: Tensor | slice) -> tuple[Batch, Scores]:
    """Select rows of a batch and of its scores, without reconstructions; `rows` is (B,) bool or a slice."""
    selected: Any = {name: value[rows] for name, value in batch.items()}  # type: ignore[index]
    return selected, Scores(image=scores["image"][rows], pixel=scores["pixel"][rows], reconstruction=selected["image"])


def replace_batch(batch: Batch, other: Batch) -> None:
    """Replace the contents of a batch in place, for all its holders."""
    replaced: Any = batch
    contents = dict(other)  # `other` may be `batch` itself
    replaced.clear()
    replaced.update(contents)


@dataclass(frozen=True)
class ScoredImage:
    """The score of a validation image, with its ground truth."""

    index: int  # of the image in its split
    category: int  # index into the data module's categories
    label: int
    score: float
    peak: float  # largest value of the anomaly map


@dataclass(frozen=True)
class TestedImage:
    """The prediction for a test image, with its ground truth."""

    __test__ = False  # pytest: not a test case
    index: int  # of the image in its split
    category: int  # index into the data module's categories
    label: int
    prediction: Prediction


def ground_truth(batch: Batch) -> tuple[list[int], list[int], list[int]]:
    """Return the indices, categories and labels of a batch."""
    return batch["index"].tolist(), batch["category"].tolist(), batch["label"].tolist()


def scored_images(batch: Batch, scores: Scores) -> list[ScoredImage]:
    """Make the records of a batch of validation images."""
    peak = scores["pixel"].float().masked_fill(~content_of(batch), -torch.inf).amax((1, 2))  # (B,)
    return list(map(ScoredImage, *ground_truth(batch), scores["image"].tolist(), peak.tolist()))


def all_finite(scores: Scores) -> Tensor:
    """Return which images of a batch have only finite scores (B,); maps are checked in float32, as in histograms."""
    return scores["image"].isfinite() & scores["pixel"].float().isfinite().flatten(1).all(1)


def gather_rows(rows: list[Row]) -> list[Row]:
    """Collect the rows of all processes, sorted by the `index` of their image and without duplicates."""
    index_of = attrgetter("index")
    if dist.is_available() and dist.is_initialized():
        parts: list[list[Row]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(parts, rows)
        rows = [row for part in parts for row in part]
    return list({index_of(row): row for row in sorted(rows, key=index_of)}.values())


def to_tensors(rows: list[ScoredImage]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the scores, peaks, labels, categories and indices of N rows, each (N,)."""
    score, peak = torch.tensor([(row.score, row.peak) for row in rows], dtype=torch.float64).view(-1, 2).T
    label, category, index = torch.tensor([[row.label, row.category, row.index] for row in rows]).view(-1, 3).T
    return score, peak, label, category, index
