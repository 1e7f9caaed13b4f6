"""The image distortion model (Keysers et al. 2007): nearest training images, with edges allowed to move slightly.

Meant for small images that are anomalous as a whole, such as handwritten digits, where a stroke moved by a pixel is
normal.
"""

import math
from itertools import repeat

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from adlight.baselines.networks import CHUNK, NearestNeighbours, to_unit
from adlight.data.frames import Size, parse_size
from adlight.settings import checked

ORIENTATIONS = 8
AT_ONCE = 2**18  # number of values compared at a time, which fit into a CPU's cache


class ImageDistortionModel(NearestNeighbours):
    """Mean distance to the k nearest training images, whose cells may be displaced by `warp` cells.

    A cell holds the strengths of its edges by orientation, scaled to length 1 over the image, because an image with few
    edges would otherwise be near to all others. Cells are compared together with their 3 x 3 neighbourhoods. The
    squared distance is the mean of two: from the query's cells to their best matches in the training image, and from
    the training image's cells to their best matches in the query, so that both additional and missing strokes count.
    Keysers et al. (2007, section 4) compare every pixel, and only in the first direction.

    Args:
        image_size, channels, k, memory_gb: see `NearestNeighbours`.
        warp: largest displacement in cells.
        candidates: number of training images to compare, the nearest without displacement; at least k.
        grid: number of cells along the shorter side.
    """

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
        super().__init__(image_size, channels, k, memory_gb)
        if candidates < k:
            raise ValueError(f"candidates must be at least k={k}, got {candidates}")
        self.warp, self.candidates = warp, candidates
        self.cell = max(1, min(parse_size(image_size)) // grid)  # pixels
        self.register_buffer("edges", self._edges(to_unit(self.bank)).half())  # (N, O, h, w)

    @property
    def bytes_per_image(self) -> int:
        """Largest number of bytes of a training image and its edges."""
        return super().bytes_per_image + 4 * self.edges.shape[1:].numel()

    def fit(self, image: Tensor, content: Tensor | None = None) -> None:
        """Store the training images (N, C, H, W), uint8, and their edges."""
        super().fit(image, content)
        parts = zip(image.split(256), repeat(None) if content is None else content.split(256), strict=False)
        self.edges = torch.cat([self._edges(to_unit(images), inside).half() for images, inside in parts])

    def describe(self) -> str:
        """Describe the fitted model."""
        return f"{super().describe()}, edges moved up to {self.warp}"

    @torch.no_grad()
    def forward(self, image: Tensor, content: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Find the nearest training image and the mean distance to k."""
        query = self._edges(image, content)  # (B, O, h, w)
        flat, size = query.flatten(1), max(1, CHUNK // query[0].numel())
        order = torch.cat([flat @ part.flatten(1).float().T for part in self.edges.split(size)], 1)  # (B, N)
        found = order.topk(min(self.candidates, len(self.bank))).indices  # (B, n), the nearest, as all have length 1
        return self.nearest(found, self._compare_all(query, found))

    def _edges(self, image: Tensor, content: Tensor | None = None) -> Tensor:
        """Measure edges by orientation in each cell, scaled to length 1. (B, C, H, W) -> (B, O, h, w)."""
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
        """Compare images with their candidates, few images at a time. (B, O, h, w), (B, n) -> (B, n)."""
        if torch.compiler.is_exporting():
            return self._compare(query, self.edges[found].float())
        values = CHUNK if query.device.type != "cpu" else AT_ONCE
        few = max(1, values // (found.shape[1] * query[0].numel()))
        pairs = zip(query.split(few), found.split(few), strict=True)
        return torch.cat([self._compare(x, self.edges[places].float()) for x, places in pairs])

    def _compare(self, query: Tensor, bank: Tensor) -> Tensor:
        """Compare images with n training images each. (B, O, h, w), (B, n, O, h, w) -> (B, n)."""
        reach, (height, width) = self.warp, query.shape[-2:]
        x = F.pad(query, (reach,) * 4)[:, None]  # (B, 1, O, h', w'), padded by the displacement
        y = F.pad(bank, (2 * reach,) * 4)  # (B, n, O, h'', w'')
        # smallest errors of the query's cells, and of the training images' cells
        least_query = least_bank = query.new_full((1, 1, 1, 1), torch.inf)
        for down in range(2 * reach + 1):
            for right in range(2 * reach + 1):
                moved = y[..., down : down + x.shape[-2], right : right + x.shape[-1]]
                error = F.avg_pool2d((x - moved).square().sum(2), 3, 1, 1)  # (B, n, h', w')
                least_query = torch.minimum(least_query, error[..., reach : reach + height, reach : reach + width])
                top, left = 2 * reach - down, 2 * reach - right  # first cell of the training image
                least_bank = torch.minimum(least_bank, error[..., top : top + height, left : left + width])
        return ((least_query + least_bank).sum((2, 3)) / 2).sqrt()
