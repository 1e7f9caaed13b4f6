"""Rows of all processes, in the order of one."""

from typing import Protocol, TypeVar

import torch.distributed as dist


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
