"""A sampler for evaluations by several processes."""

from collections.abc import Iterator

from torch.utils.data import Sampler


class ExactSampler(Sampler[int]):
    """Every index exactly once over all processes, in order; torch's `DistributedSampler` repeats some to pad.

    Processes may get one index more or less than each other, so no step of an evaluation may wait for the others.
    """

    def __init__(self, length: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, length, world_size)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)
