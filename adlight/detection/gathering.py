"""Records of scored images, and collecting them from all processes."""

from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from adlight.types import Prediction


@dataclass(frozen=True)
class ScoredImage:
    """The score of a validation image, with its ground truth."""

    index: int  # of the image in its split
    category: int  # position in the data module's categories
    label: int
    score: float
    peak: float  # largest value of the anomaly map


@dataclass(frozen=True)
class TestedImage:
    """The prediction for a test image, with its ground truth."""

    __test__ = False  # pytest: not a test case
    index: int  # of the image in its split
    category: int  # position in the data module's categories
    label: int
    prediction: Prediction


class Indexed(Protocol):
    """A row that belongs to an image."""

    @property
    def index(self) -> int:
        """Index of the image in its split."""


Row = TypeVar("Row", bound=Indexed)


def gather_rows(rows: list[Row]) -> list[Row]:
    """Collect the rows of all processes, sorted by index and without duplicates."""
    if dist.is_available() and dist.is_initialized():
        parts: list[list[Row]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(parts, rows)
        rows = [row for part in parts for row in part]
    return list({row.index: row for row in sorted(rows, key=lambda row: row.index)}.values())


def to_tensors(rows: list[ScoredImage]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the scores, peaks, labels, categories and indices of N rows, each (N,)."""
    score, peak = torch.tensor([(row.score, row.peak) for row in rows], dtype=torch.float64).view(-1, 2).T
    label, category, index = torch.tensor([[row.label, row.category, row.index] for row in rows]).view(-1, 3).T
    return score, peak, label, category, index
