"""From scores of cells to scores of images and pixels."""

import torch
from torch import Tensor
from torch.nn import functional as F

from adlight.detection.maps import reduce_map, smooth
from adlight.types import check_range


class CellScorer:
    """Smooths cells and reduces them to image scores; brings them to the image's pixels.

    Args:
        reduce: `topk`, the mean of the largest cells; `max` or `mean`.
        topk: their share of all cells.
        cell_smoothing: sigma of the Gaussian before that, in cells; 0 = none.
        smoothing: sigma of the Gaussian over the map, in cells; 0 = none. A quarter is 4 pixels where a cell has 16.

    Raises:
        ValueError: an unknown reduction, or a number out of range.
    """

    def __init__(
        self, reduce: str = "topk", topk: float = 0.01, cell_smoothing: float = 0.5, smoothing: float = 0.25
    ) -> None:
        reduce_map(torch.zeros(1, 1, 1), reduce)  # an unknown one fails here
        check_range("topk", topk, 0, 1, exclusive=True)
        check_range("cell_smoothing", cell_smoothing)
        check_range("smoothing", smoothing)
        self.reduce, self.topk, self.cell_smoothing, self.smoothing = reduce, topk, cell_smoothing, smoothing

    def __call__(self, cells: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Score images and pixels. (B, h, w), (H, W) -> (B,), (B, H, W)."""
        image = reduce_map(smooth(cells, self.cell_smoothing), self.reduce, self.topk)  # (B,)
        pixel = F.interpolate(cells[:, None], size, mode="bilinear", align_corners=False)[:, 0]  # (B, H, W)
        return image, smooth(pixel, self.smoothing * size[0] / cells.shape[1])
