"""Pictures of predicted features: each cell is shown as the image patch of the nearest training cell.

A patch extends half a cell beyond its cell on each side and fades out there, so that neighbouring patches blend.
"""

from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from adlight.data.frames import group_by_size, size_of
from adlight.features.cells import TrainingCells, content_shape, in_image

if TYPE_CHECKING:
    from adlight.data.pseudo_dataset import Images

COUNT = 2048  # number of cells kept
SIDE = 16  # side of a cell, in pixels


class PatchPictures(nn.Module):
    """A random sample of training cells (..., C) with the image patches that they cover."""

    cells: Tensor
    patches: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("cells", torch.empty(0, channels, dtype=torch.float16))
        self.register_buffer("patches", torch.empty(0, 3, 2 * SIDE, 2 * SIDE, dtype=torch.uint8))

    def fit(self, cells: TrainingCells, images: "Images") -> None:
        """Sample cells, and cut out their patches."""
        n, height, width = cells.features.shape[:3]
        drawn = torch.randperm(n * height * width, generator=Generator().manual_seed(0))[:COUNT].sort().values
        number, position = drawn // (height * width), drawn % (height * width)
        sampled, patches = [], []
        for i in number.unique().tolist():
            grid, batch = cells[[i]][0], images.__getitems__([i])  # (h, w, C)
            rows, columns = content_shape(grid[..., 0]) if "size" in batch else grid.shape[:2]
            y, x = position[number == i] // width, position[number == i] % width
            inside = in_image(grid).cpu()[y, x]
            y, x = y[inside], x[inside]
            sampled.append(grid[y.to(grid.device), x.to(grid.device)])
            h, w = size_of(batch, 0)
            picture = F.interpolate(batch["image"][..., :h, :w].float(), (rows * SIDE, columns * SIDE), mode="area")
            picture = F.pad(picture.expand(-1, 3, -1, -1), [SIDE // 2] * 4, mode="replicate")
            windows = picture[0].unfold(1, 2 * SIDE, SIDE).unfold(2, 2 * SIDE, SIDE)  # (3, rows, columns, 32, 32)
            patches.append(windows[:, y, x].transpose(0, 1).round().to(torch.uint8))
        self.cells = torch.cat(sampled).half()
        self.patches = torch.cat(patches).to(self.cells.device)

    def forward(self, cells: Tensor, image: Tensor, size: Tensor | None = None) -> Tensor:
        """Draw cells (B, h, w, C) in the size and channels of the images. -> (B, 1 or 3, H, W) in [0, 1].

        The padding beyond heights and widths `size` (B, 2) is black.
        """
        if size is not None:
            pictures = torch.zeros_like(image)
            for members, h, w in group_by_size(size):
                rows, columns = content_shape(cells[members[0], ..., 0])
                pictures[members, :, :h, :w] = self(cells[members, :rows, :columns], image[members, :, :h, :w])
            return pictures
        known = self.cells.to(cells.dtype)
        distance = torch.addmm(known.square().sum(1), cells.flatten(0, 2), known.T, alpha=-2)  # (B h w, COUNT)
        nearest = distance.argmin(-1).view(cells.shape[:3])  # (B, h, w)
        picture = torch.stack([blend(self.patches[index]) for index in nearest]) / 255  # (B, 3, h SIDE, w SIDE)
        picture = F.interpolate(picture, image.shape[-2:], mode="bilinear", align_corners=False)
        return picture.mean(1, keepdim=True) if image.shape[1] == 1 else picture


def blend(patches: Tensor) -> Tensor:
    """Blend patches of side 2 s at a distance of s, weighted by tent functions. (h, w, 3, 2s, 2s) -> (3, h s, w s)."""
    side = patches.shape[-1] // 2
    ramp = (torch.arange(2 * side, device=patches.device) + 0.5) / side
    tent = torch.minimum(ramp, 2 - ramp)  # (2s,)
    weight = tent[:, None] * tent  # (2s, 2s)
    return _overlap_add(patches * weight) / _overlap_add(weight.expand_as(patches))


def _overlap_add(patches: Tensor) -> Tensor:
    """Sum overlapping patches, one quarter of each at a time; four times as fast as `F.fold` on CPUs."""
    (height, width, channels), side = patches.shape[:3], patches.shape[-1] // 2
    quarters = patches.unflatten(4, (2, side)).unflatten(3, (2, side))  # (h, w, 3, 2, s, 2, s)
    total = patches.new_zeros(height + 1, width + 1, channels, side, side)
    for i in (0, 1):
        for j in (0, 1):
            total[i : i + height, j : j + width] += quarters[:, :, :, i, :, j]
    picture = total.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)  # (3, (h + 1) s, (w + 1) s)
    return picture[:, side // 2 : -side // 2, side // 2 : -side // 2]
