"""Nearest training images when their edges may move a little: the image distortion model (Keysers et al. 2007).

For small images that differ as a whole, such as handwritten digits: a stroke one pixel beside another is no anomaly.
"""

import math

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from adlight.baselines.networks import check_memory, to_unit
from adlight.data.frames import Size, parse_size
from adlight.settings import checked
from adlight.types import UserError

ORIENTATIONS = 8
AT_ONCE = 2**18  # values of pairs of images that are compared at a time: they stay in a CPU's cache
CHUNK = 2**26  # values of the bank that are floats at a time: 256 MiB


class ImageDistortionModel(nn.Module):
    """Mean distance to the k nearest training images, each cell of which may lie `warp` cells away from the query's.

    Cells hold the edges of about `grid` parts of the shorter side by orientation, brought to length 1 over the image,
    as an image with few edges would be near to all. A cell is compared with its 3 x 3 surroundings; the squared
    distance is the mean of that of the query's cells to the best ones in the training image, and of the training
    image's to the best ones in the query: nothing may be added, nothing missing. Keysers et al. (2007, section 4)
    compare every pixel, and only the first way.

    Args:
        image_size: side of the images in pixels, or height and width.
        channels: C.
        k: number of neighbours.
        warp: cells; 0 = none.
        candidates: training images that are compared so, the nearest ones without displacement.
        grid: cells along the shorter side.
        memory_gb: training images that need more than this are refused.
    """

    bank: Tensor
    edges: Tensor

    @checked
    def __init__(
        self,
        image_size: Size,
        channels: PositiveInt = 3,
        k: PositiveInt = 3,
        warp: NonNegativeInt = 1,
        candidates: PositiveInt = 32,
        grid: PositiveInt = 14,
        memory_gb: PositiveFloat = 8.0,
    ) -> None:
        super().__init__()
        if candidates < k:
            raise ValueError(f"candidates must be at least k={k}, got {candidates}")
        self.k, self.warp, self.candidates, self.memory_gb = k, warp, candidates, memory_gb
        size = parse_size(image_size)
        self.cell = max(1, min(size) // grid)  # pixels
        self.register_buffer("bank", torch.empty(0, channels, *size, dtype=torch.uint8))
        self.register_buffer("edges", self._edges(torch.empty(0, channels, *size)).half())  # (N, O, h, w)

    def check(self, count: int) -> None:
        """Refuse a number of training images that cannot be fitted.

        Raises:
            UserError: fewer than k, or too many for the memory.
        """
        if count < self.k:
            raise UserError(f"k={self.k} neighbours of {count} training images: lower k")
        check_memory(count * (3 * self.bank.shape[1:].numel() + 4 * self.edges.shape[1:].numel()), self.memory_gb)

    def fit(self, image: Tensor, content: Tensor | None = None) -> None:
        """Keep the training images (N, C, H, W), uint8, and their edges."""
        self.check(len(image))
        self.bank = image if content is None else image * content[:, None]
        inside = [None] * len(image) if content is None else content.split(256)
        parts = zip(image.split(256), inside, strict=False)
        self.edges = torch.cat([self._edges(to_unit(one), known).half() for one, known in parts])

    def describe(self) -> str:
        """Say what was fitted."""
        return (
            f"mean distance to the {self.k} nearest of {len(self.bank)} training images, edges moved up to {self.warp}"
        )

    @torch.no_grad()
    def forward(self, image: Tensor, content: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Find the nearest training image and the mean distance to k."""
        query = self._edges(image, content)  # (B, O, h, w)
        flat, size = query.flatten(1), max(1, CHUNK // query[0].numel())
        order = torch.cat([flat @ part.flatten(1).float().T for part in self.edges.split(size)], 1)  # (B, N)
        found = order.topk(min(self.candidates, len(self.bank))).indices  # (B, n): all have length 1
        distance = self._compare_all(query, found)  # (B, n)
        nearest = found.gather(1, distance.argmin(1, keepdim=True))[:, 0]  # (B,)
        return to_unit(self.bank[nearest]), distance.topk(self.k, largest=False).values.mean(1)

    def _edges(self, image: Tensor, content: Tensor | None = None) -> Tensor:
        """Measure edges by orientation in each cell, together of length 1. (B, C, H, W) -> (B, O, h, w)."""
        sobel = image.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
        x = F.pad(image.flatten(0, 1)[:, None], (1, 1, 1, 1), "replicate")
        slope = F.conv2d(x, torch.stack([sobel, sobel.T])[:, None]).unflatten(0, image.shape[:2])  # (B, C, 2, H, W)
        angle = torch.arange(ORIENTATIONS, device=image.device) * (2 * math.pi / ORIENTATIONS)
        axes = torch.stack([angle.cos(), angle.sin()], 1)  # (O, 2)
        along = torch.einsum("bcdhw,od->bcohw", slope, axes).clamp(min=0).square()
        energy = (along / (slope.norm(dim=2, keepdim=True) + 1e-6)).sum(1)  # (B, O, H, W)
        energy = energy if content is None else energy * content[:, None]
        cells = F.avg_pool2d(energy, 2 * self.cell + 1, self.cell, self.cell).sqrt()  # (B, O, h, w)
        return cells / cells.square().sum((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-6)

    def _compare_all(self, query: Tensor, found: Tensor) -> Tensor:
        """Compare images with the training images found for each, few at a time. (B, O, h, w), (B, n) -> (B, n)."""
        if torch.compiler.is_exporting():
            return self._compare(query, self.edges[found].float())
        values = CHUNK if query.device.type != "cpu" else AT_ONCE
        few = max(1, values // (found.shape[1] * query[0].numel()))
        pairs = zip(query.split(few), found.split(few), strict=True)
        return torch.cat([self._compare(x, self.edges[places].float()) for x, places in pairs])

    def _compare(self, query: Tensor, bank: Tensor) -> Tensor:
        """Compare images with n training images each. (B, O, h, w), (B, n, O, h, w) -> (B, n)."""
        reach, (height, width) = self.warp, query.shape[-2:]
        x = F.pad(query, (reach,) * 4)[:, None]  # (B, 1, O, h', w'), as wide as both may move
        y = F.pad(bank, (2 * reach,) * 4)  # (B, n, O, h'', w'')
        there = back = query.new_full((1, 1, 1, 1), torch.inf)  # least of the query's cells, of the training images'
        for down in range(2 * reach + 1):
            for right in range(2 * reach + 1):
                moved = y[..., down : down + x.shape[-2], right : right + x.shape[-1]]
                error = F.avg_pool2d((x - moved).square().sum(2), 3, 1, 1)  # (B, n, h', w')
                own = error[..., reach : reach + height, reach : reach + width]
                top, left = 2 * reach - down, 2 * reach - right  # the training image's first cell
                its = error[..., top : top + height, left : left + width]
                there, back = torch.minimum(there, own), torch.minimum(back, its)
        return ((there + back).sum((2, 3)) / 2).sqrt()
