"""What is noted of each image, and the rows of all processes in the order of one."""

from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from adlight.types import Prediction


@dataclass(frozen=True)
class ScoredImage:
    """A validation image's score beside the truth."""

    index: int  # of the image in its split
    category: int  # position in the data module's categories
    label: int
    score: float
    peak: float  # its largest pixel


@dataclass(frozen=True)
class TestedImage:
    """A test image's prediction beside the truth."""

    __test__ = False  # pytest: not a test case
    index: int  # of the image in its split
    category: int  # position in the data module's categories
    label: int
    prediction: Prediction


class Indexed(Protocol):
    """A row that says which image it is of."""

    @property
    def index(self) -> int:
        """The image's index in its split."""


Row = TypeVar("Row", bound=Indexed)


def gather_rows(rows: list[Row]) -> list[Row]:
    """Collect all processes' rows, in the order of their indices, each index once."""
    if dist.is_available() and dist.is_initialized():
        parts: list[list[Row]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(parts, rows)
        rows = [row for part in parts for row in part]
    return list({row.index: row for row in sorted(rows, key=lambda row: row.index)}.values())


def columns(rows: list[ScoredImage]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Give scores, peaks, labels, categories and indices of rows, (N,) each."""
    score, peak = torch.tensor([(row.score, row.peak) for row in rows], dtype=torch.float64).view(-1, 2).T
    label, category, index = torch.tensor([[row.label, row.category, row.index] for row in rows]).view(-1, 3).T
    return score, peak, label, category, index
