"""Cells of feature maps: the standardized cells of the training images, and masks of the cells inside an image.

Cells in padding or outside the region of interest are NaN, and so are their residuals and scores. Averages over
an image leave them out.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from adlight.detection.whitening import k_means
from adlight.types import Batch

BATCH = 64  # images
FEW = 4  # images per pass where more would not be faster: arrays above 32 MiB cost page faults each time


class Copies(NamedTuple):
    """Features of rotated copies of training images."""

    features: Tensor  # (M, h, w, C) float16
    source: Tensor  # (M,), indices of the training images

    def of_images(self, rows: Tensor) -> "Copies":
        """Select the copies of the images `rows` (n,), ascending; their `source` then indexes `rows`."""
        kept = torch.isin(self.source, rows)
        return Copies(self.features[kept], torch.searchsorted(rows, self.source[kept]))


class TrainingCells:
    """Features of the training images (N, h, w, C) float16, standardized on access by channel statistics (C,).

    Neither the length nor indexing includes `copies`, rotated copies of some images.
    """

    def __init__(self, features: Tensor, mean: Tensor, std: Tensor, copies: Copies | None = None) -> None:
        self.features, self.mean, self.std, self.copies = features, mean, std, copies

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: Tensor | slice | Sequence[int]) -> Tensor:
        """(B,) -> (B, h, w, C) float32 on the device of `mean`."""
        return standardize(self.features[index].to(self.mean.device), self.mean, self.std)

    def batches(self, size: int = BATCH) -> Iterator[Tensor]:
        """Yield the cells of all images in order, (B, h, w, C) at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def batches_with_copies(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the cells (B, h, w, C) of all images, then of the copies, with the images' indices (B,)."""
        yield from ((self[index], index) for index in torch.arange(len(self)).split(BATCH))
        if self.copies is not None:
            for features, index in zip(self.copies.features.split(BATCH), self.copies.source.split(BATCH), strict=True):
                yield standardize(features.to(self.mean.device), self.mean, self.std), index

    def sample(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the cells (n, h, w, C) and indices (n,) of at most `count` evenly spaced images."""
        if count:
            step = max(1, len(self) // count)
            for index in torch.arange(0, len(self), step)[:count].split(BATCH):
                yield self[index], index.to(self.mean.device)


def prepare_cells(features: Tensor, clusters: int, device: torch.device) -> tuple[TrainingCells, Tensor]:
    """Standardize the features (N, h, w, C) float16 of the training images, and find at most `clusters` clusters.

    Returns:
        The cells, and the centers of the clusters of images (K, C).
    """
    mean, std = (statistic.to(device) for statistic in channel_statistics(features))
    cells = TrainingCells(features, mean, std)
    return cells, k_means(torch.cat([image_means(batch) for batch in cells.batches(FEW)]), clusters)


def standardize(features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Standardize every channel to mean 0 and standard deviation 1. (..., C) -> (..., C) float32."""
    return features.to(torch.float32, copy=True).sub_(mean).div_(std)  # one new array, not two


def channel_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean and standard deviation of each channel over all cells. (N, h, w, C) -> (C,), (C,)."""
    total, squares, count = torch.zeros(()), torch.zeros(()), 0
    for part in features.split(FEW):
        flat = content_of(part).double()
        total, squares, count = total + flat.sum(0), squares + flat.square().sum(0), count + len(flat)
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    return mean.float(), torch.where(std > 1e-6, std, 1.0).float()  # constant channels are not scaled


def in_parts(cells: Tensor, few: int = FEW) -> tuple[Tensor, ...]:
    """Split cells (B, h, w, C) into parts of a few images on CPUs; GPUs and exported graphs take all at once."""
    return (cells,) if in_one_part(cells) else cells.split(few)


def in_one_part(cells: Tensor) -> bool:
    """Return whether to compute all cells at once, as on GPUs and in exported graphs; a CPU's cache holds few."""
    return torch.compiler.is_exporting() or cells.device.type != "cpu"


def in_image(cells: Tensor) -> Tensor:
    """Mask the cells that are neither padding nor outside the region of interest. (..., C) -> (...) bool."""
    return ~cells[..., 0].isnan()


def extract_features(backbone: Callable[[Tensor, Tensor | None], Tensor], batch: Batch) -> Tensor:
    """Extract the features of a batch in [0, 1]. -> (B, h, w, C), NaN in padding and outside the region of interest."""
    cells = backbone(batch["image"], batch.get("size"))  # (B, h, w, C)
    if "content" not in batch:
        return cells
    content = batch["content"].float()[:, None]  # (B, 1, H, W)
    inside = F.adaptive_max_pool2d(content, cells.shape[1:3])[:, 0] > 0  # (B, h, w), cells with any pixel of the region
    return cells.where(inside[..., None], torch.nan)


def is_padded(cells: Tensor) -> bool:
    """Return whether any cell (B, h, w, C) is NaN, in padding or outside the region; never in an exported graph."""
    return not torch.compiler.is_exporting() and not bool(in_image(cells).all())


def content_of(cells: Tensor) -> Tensor:
    """Select the cells that are `in_image`. (..., C) -> (n, C)."""
    return cells[in_image(cells)]


def image_means(cells: Tensor) -> Tensor:
    """Average the cells of each image. (B, h, w, C) -> (B, C)."""
    inside = in_image(cells)  # (B, h, w)
    return cells.where(inside[..., None], 0).sum((1, 2)) / inside.sum((1, 2))[:, None]


def content_shape(cells: Tensor) -> tuple[int, int]:
    """Count the rows and columns of an image's cells (h, w) that are not padding."""
    known = ~cells.isnan()
    return int(known[:, 0].sum()), int(known[0].sum())
