"""Descriptors of image thumbnails, which tell categories apart. Letters: D values of a descriptor."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from adlight.data.splits import Split

GRID = 32  # side of a thumbnail, in pixels
IMAGES = 200  # images described per category, evenly spaced


def describe_images(image: Tensor, size: Tensor | None = None) -> Tensor:
    """Describe images by coarse maps and by quantiles of their colours and edges.

    Args:
        image: (B, C, H, W) in [0, 1].
        size: (B, 2), heights and widths of padded images.

    Returns:
        (B, D) float64 on the CPU.
    """
    if size is None:
        small = F.adaptive_avg_pool2d(image, GRID)  # (B, C, 32, 32)
    else:
        crops = [padded[None, :, :h, :w] for padded, (h, w) in zip(image, size.tolist(), strict=True)]
        small = torch.cat([F.adaptive_avg_pool2d(crop, GRID) for crop in crops])
    small = small.double().cpu()
    grey = small.mean(1)  # (B, 32, 32)
    edges = [grey.diff(dim=dim).abs() for dim in (1, 2)]
    coarse = [F.adaptive_avg_pool2d(small, 8), *(F.adaptive_avg_pool2d(edge, 4) for edge in edges)]
    quantiles = [_quantiles(values.flatten(-2)) for values in (small, *edges)]
    return torch.cat([values.flatten(1) for values in (*coarse, *quantiles)], 1)


def _quantiles(x: Tensor) -> Tensor:
    x = x.sort(-1).values  # (..., N)
    return x[..., torch.linspace(0, x.shape[-1] - 1, 9).round().long()]  # (..., 9)


def describe_split(dataset: Split, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Describe up to `IMAGES` images of each category. -> descriptors (N, D) and positions in `names` (N,)."""
    rows = []
    for name in names:
        members = [i for i, record in enumerate(dataset.records) if record.category == name]
        rows += members[:: -(-len(members) // IMAGES)] if members else []
    batches = [dataset.__getitems__(rows[start : start + 64]) for start in range(0, len(rows), 64)]
    x = torch.cat([describe_images(batch["image"].float() / 255, batch.get("size")) for batch in batches])
    return x, torch.tensor([names.index(dataset.records[i].category) for i in rows])
