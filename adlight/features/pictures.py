"""A picture of what a predictor expected: each cell is shown as the image patch of the nearest normal cell.

Patches reach half a cell beyond their own on each side and fade out there, so that neighbours blend into one picture.
"""

from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from adlight.data.frames import group_by_size
from adlight.features.predictor import TrainingCells, content_shape, in_image

if TYPE_CHECKING:
    from adlight.data.pseudo_dataset import Images

SIDE = 16  # pixels of a cell


class PatchPictures(nn.Module):
    """Some training cells with the patches of pixels that they lie on.

    Args:
        channels: C.
        count: how many are kept, drawn at random from all images and places.
    """

    cells: Tensor
    patches: Tensor

    def __init__(self, channels: int, count: int = 2048) -> None:
        super().__init__()
        self.count = count
        self.register_buffer("cells", torch.empty(0, channels, dtype=torch.float16))
        self.register_buffer("patches", torch.empty(0, 3, 2 * SIDE, 2 * SIDE, dtype=torch.uint8))

    def fit(self, cells: TrainingCells, images: "Images") -> None:
        """Draw cells and cut out their patches."""
        n, height, width = cells.features.shape[:3]
        drawn = torch.randperm(n * height * width, generator=Generator().manual_seed(0))[: self.count].sort().values
        number, place = drawn // (height * width), drawn % (height * width)
        found, patches = [], []
        for i in number.unique().tolist():
            own, batch = cells[[i]][0], images.__getitems__([i])  # (h, w, C)
            rows, columns = content_shape(own[..., 0]) if "size" in batch else own.shape[:2]
            y, x = place[number == i] // width, place[number == i] % width
            known = in_image(own).cpu()[y, x]
            y, x = y[known], x[known]
            found.append(own[y.to(own.device), x.to(own.device)])
            h, w = batch["size"][0].tolist() if "size" in batch else batch["image"].shape[-2:]
            picture = F.interpolate(batch["image"][..., :h, :w].float(), (rows * SIDE, columns * SIDE), mode="area")
            picture = F.pad(picture.expand(-1, 3, -1, -1), [SIDE // 2] * 4, mode="replicate")
            cut = F.unfold(picture, 2 * SIDE, stride=SIDE)[0]  # (12 SIDE^2, rows columns)
            patches.append(cut.T[y * columns + x].view(-1, 3, 2 * SIDE, 2 * SIDE).round().to(torch.uint8))
        self.cells = torch.cat(found).half()
        self.patches = torch.cat(patches).to(self.cells.device)

    def forward(self, cells: Tensor, image: Tensor, size: Tensor | None = None) -> Tensor:
        """Show cells (B, h, w, C) in the size and channels of `image`: (B, 1 or 3, H, W) -> the same, in [0, 1].

        Padding, where images have a size (B, 2), is black.
        """
        if size is not None:
            shown = torch.zeros_like(image)
            for at, h, w in group_by_size(size):
                rows, columns = content_shape(cells[at[0], ..., 0])
                shown[at, :, :h, :w] = self(cells[at, :rows, :columns], image[at, :, :h, :w])
            return shown
        known = self.cells.to(cells.dtype)
        distance = torch.addmm(known.square().sum(1), cells.flatten(0, 2), known.T, alpha=-2)  # (B h w, count)
        nearest = distance.argmin(-1).view(cells.shape[:3])  # (B, h, w)
        picture = torch.stack([blend(self.patches[one]) for one in nearest]) / 255  # (B, 3, h SIDE, w SIDE)
        picture = F.interpolate(picture, image.shape[-2:], mode="bilinear", align_corners=False)
        return picture.mean(1, keepdim=True) if image.shape[1] == 1 else picture


def blend(patches: Tensor) -> Tensor:
    """Lay patches of side 2 s over each other, s apart, weighted by tents. (h, w, 3, 2s, 2s) -> (3, h s, w s)."""
    side = patches.shape[-1] // 2
    ramp = (torch.arange(2 * side, device=patches.device) + 0.5) / side
    tent = torch.minimum(ramp, 2 - ramp)  # (2s,)
    weight = tent[:, None] * tent  # (2s, 2s)
    return _lay(patches * weight) / _lay(weight.expand_as(patches))


def _lay(patches: Tensor) -> Tensor:
    """Sum up what overlaps, a quarter of all patches after the other; four times as fast as `F.fold` on CPUs."""
    (height, width, channels), side = patches.shape[:3], patches.shape[-1] // 2
    quarters = patches.unflatten(4, (2, side)).unflatten(3, (2, side))  # (h, w, 3, 2, s, 2, s)
    laid = patches.new_zeros(height + 1, width + 1, channels, side, side)
    for i in (0, 1):
        for j in (0, 1):
            laid[i : i + height, j : j + width] += quarters[:, :, :, i, :, j]
    picture = laid.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)  # (3, (h + 1) s, (w + 1) s)
    return picture[:, side // 2 : -side // 2, side // 2 : -side // 2]
