"""Which images a process evaluates."""

from collections.abc import Iterator

from torch import Tensor
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


class TileBatches(Sampler[list[int]]):
    """Batches of tiles, each of one image; every image on one process, its tiles one after the other.

    Args:
        images: (N,) the image of each tile.
        batch_size: largest number of tiles.
        rank: of this process.
        world_size: of processes, which take images in turn.
    """

    def __init__(self, images: Tensor, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.batches: list[list[int]] = []
        for image in images.unique().tolist()[rank::world_size]:
            self.batches += [part.tolist() for part in (images == image).nonzero()[:, 0].split(batch_size)]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
