"""A picture of what a predictor expected: each cell is shown as the image patch of the nearest normal cell."""

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from adlight.data.frames import group_by_size
from adlight.features.cache import Images
from adlight.features.predictor import TrainingCells, content_shape

SIDE = 16  # pixels of a kept patch


class PatchPictures(nn.Module):
    """Some training cells with the patches of pixels that they lie on.

    Args:
        channels: C.
        count: how many are kept, drawn at random from all images and places.
    """

    cells: Tensor
    patches: Tensor

    def __init__(self, channels: int, count: int = 1024) -> None:
        super().__init__()
        self.count = count
        self.register_buffer("cells", torch.empty(0, channels, dtype=torch.float16))
        self.register_buffer("patches", torch.empty(0, 3, SIDE, SIDE, dtype=torch.uint8))

    def fit(self, cells: TrainingCells, images: Images) -> None:
        """Draw cells and cut out their patches."""
        n, height, width = cells.features.shape[:3]
        drawn = torch.randperm(n * height * width, generator=Generator().manual_seed(0))[: self.count].sort().values
        number, place = drawn // (height * width), drawn % (height * width)
        found, patches = [], []
        for i in number.unique().tolist():
            own, batch = cells[[i]][0], images.__getitems__([i])  # (h, w, C)
            rows, columns = content_shape(own[..., 0])
            y, x = place[number == i] // width, place[number == i] % width
            y, x = (one[(y < rows) & (x < columns)] for one in (y, x))
            found.append(own[y.to(own.device), x.to(own.device)])
            h, w = batch["size"][0].tolist() if "size" in batch else batch["image"].shape[-2:]
            picture = F.interpolate(batch["image"][..., :h, :w].float(), (rows * SIDE, columns * SIDE), mode="area")
            cut = F.unfold(picture.expand(-1, 3, -1, -1), SIDE, stride=SIDE)[0]  # (3 SIDE^2, rows columns)
            patches.append(cut.T[y * columns + x].view(-1, 3, SIDE, SIDE).round().to(torch.uint8))
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
        b, height, width, _ = cells.shape
        known = self.cells.to(cells.dtype)
        nearest = (known.square().sum(1) - 2 * cells @ known.T).argmin(-1)  # (B, h, w)
        patches = self.patches[nearest].float() / 255  # (B, h, w, 3, SIDE, SIDE)
        picture = patches.permute(0, 3, 1, 4, 2, 5).reshape(b, 3, height * SIDE, width * SIDE)
        picture = F.interpolate(picture, image.shape[-2:], mode="bilinear", align_corners=False)
        return picture.mean(1, keepdim=True) if image.shape[1] == 1 else picture
