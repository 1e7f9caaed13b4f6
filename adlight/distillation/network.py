"""The cloner, a small network that learns to mimic a frozen network, and the differences between them (Salehi 2021).

Letters: B images, C_l channels and h_l x w_l cells of layer l.
"""

from collections.abc import Sequence

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from adlight.settings import checked


class Cloner(nn.Module):
    """Convolutional network whose maps have the shapes of another network's layers.

    Between two layers the grid is halved as often as in the other network, by 3 x 3 convolutions of stride 2, each
    followed by a convolution of stride 1; a 1 x 1 convolution produces the map. Salehi's cloner is a narrower VGG-16.

    Args:
        shapes: channels C_l and stride of each layer, from fine to coarse; strides are growing powers of two.
        width: number of channels after the first convolution, doubled with each halving up to 8 times `width`.
    """

    @checked
    def __init__(self, shapes: Sequence[tuple[PositiveInt, PositiveInt]], width: PositiveInt = 16) -> None:
        super().__init__()
        self.stages, self.heads = nn.ModuleList(), nn.ModuleList()
        before, stride = 3, 1
        for channels, target in shapes:
            layers: list[nn.Module] = []
            while stride < target or not layers:
                step, stride = (2, 2 * stride) if stride < target else (1, stride)
                after = width * min(8, max(1, stride // 2))
                layers += _conv(before, after, step) + _conv(after, after, 1)
                before = after
            if stride != target:
                raise ValueError(f"layers must go from fine to coarse, in strides that are powers of two, got {shapes}")
            self.stages.append(nn.Sequential(*layers))
            self.heads.append(nn.Conv2d(before, channels, 1))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the maps. (B, 3, H, W), normalized for the frozen network -> list of (B, C_l, h_l, w_l)."""
        maps = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            pixels = stage(pixels)  # (B, D, h_l, w_l)
            maps.append(head(pixels))  # (B, C_l, h_l, w_l)
        return maps


def distillation_loss(frozen: Sequence[Tensor], cloned: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Compare each layer by direction and value (Salehi 2021, eq. 1 and 2). -> L_dir and L_val, (B,) each.

    L_dir = sum_l (1 - a_l b_l / (|a_l| |b_l|)),  L_val = sum_l mean_j (a_l(j) - b_l(j))^2, where a_l and b_l are all
    values of layer l of the frozen network and of the cloner, (B, C_l, h_l, w_l), as a vector.
    """
    pairs = [(a.float().flatten(1), b.float().flatten(1)) for a, b in zip(frozen, cloned, strict=True)]
    direction = torch.stack([1 - F.cosine_similarity(a, b) for a, b in pairs]).sum(0)
    return direction, torch.stack([(a - b).square().mean(1) for a, b in pairs]).sum(0)


def distillation_map(frozen: Sequence[Tensor], cloned: Sequence[Tensor], weight: Tensor, size: Sequence[int]) -> Tensor:
    """Compute the terms of `distillation_loss` for each cell, direction + weight value, upsampled. -> (B, H, W)."""
    maps = []
    for a, b in zip(frozen, cloned, strict=True):
        a, b = a.float(), b.float()  # (B, C_l, h_l, w_l)
        cells = 1 - F.cosine_similarity(a, b) + weight * (a - b).square().mean(1)  # (B, h_l, w_l)
        maps.append(F.interpolate(cells[:, None], list(size), mode="bilinear", align_corners=False)[:, 0])
    return torch.stack(maps).sum(0)


def _conv(before: int, after: int, stride: int) -> list[nn.Module]:
    norm = nn.GroupNorm(next(n for n in (8, 4, 2, 1) if after % n == 0), after)  # independent of other images
    return [nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False), norm, nn.ReLU()]
