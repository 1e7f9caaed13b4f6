"""Thumbnails of images as vectors, by which categories are told apart. Letters: D values of a vector."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from adlight.data.loading import Split

GRID = 32  # side of the thumbnail that is described
IMAGES = 200  # of a category that are looked at, evenly spaced


def describe_images(image: Tensor, size: Tensor | None = None) -> Tensor:
    """Describe images by where which colours and edges are, and by how many of them there are wherever they are.

    (B, C, H, W) in [0, 1], padded ones with heights and widths (B, 2) -> (B, D) float64 on the CPU.
    """
    if size is None:
        small = F.adaptive_avg_pool2d(image, GRID)  # (B, C, 32, 32)
    else:
        parts = zip(image, size.tolist(), strict=True)
        small = torch.cat([F.adaptive_avg_pool2d(one[None, :, :h, :w], GRID) for one, (h, w) in parts])
    small = small.double().cpu()
    grey = small.mean(1)  # (B, 32, 32)
    edges = [grey.diff(dim=dim).abs() for dim in (1, 2)]
    places = [F.adaptive_avg_pool2d(small, 8), *(F.adaptive_avg_pool2d(one, 4) for one in edges)]
    amounts = [_quantiles(one.flatten(-2)) for one in (small, *edges)]
    return torch.cat([one.flatten(1) for one in (*places, *amounts)], 1)


def _quantiles(x: Tensor, count: int = 9) -> Tensor:
    x = x.sort(-1).values  # (..., N) -> (..., count)
    return x[..., torch.linspace(0, x.shape[-1] - 1, count).round().long()]


def describe_split(dataset: Split, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Describe some images of each category. -> (N, D), and positions in `names` (N,)."""
    rows = []
    for name in names:
        mine = [i for i, record in enumerate(dataset.records) if record.category == name]
        rows += mine[:: -(-len(mine) // IMAGES)] if mine else []
    batches = [dataset.__getitems__(rows[start : start + 64]) for start in range(0, len(rows), 64)]
    x = torch.cat([describe_images(one["image"].float() / 255, one.get("size")) for one in batches])
    return x, torch.tensor([names.index(dataset.records[i].category) for i in rows])
