"""Image scores and anomaly maps from cell scores."""

from collections.abc import Mapping

import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.nn import functional as F

from adlight.data.frames import group_by_size
from adlight.detection.maps import Reduction, reduce_map, smooth
from adlight.features.cells import content_shape
from adlight.features.predictor import Predictor
from adlight.features.residuals import ResidualMap
from adlight.settings import PositiveShare, checked
from adlight.types import Batch


class CellScorer:
    """Reduces smoothed cell scores to image scores, and interpolates cell scores to pixels.

    Args:
        reduce: `topk` (the mean of the largest cells), `max` or `mean`.
        topk: fraction of cells that `topk` averages, relative to the largest square in the image, because defects in a
            strip are no larger than in a square of the same height.
        cell_smoothing: sigma of the Gaussian before the reduction, in cells; 0 for none.
        smoothing: sigma of the Gaussian over the anomaly map, in cells; 0 for none. 0.25 is 4 pixels for cells of 16.
    """

    @checked
    def __init__(
        self,
        reduce: Reduction = "topk",
        topk: PositiveShare = 0.01,
        cell_smoothing: NonNegativeFloat = 0.5,
        smoothing: NonNegativeFloat = 0.25,
    ) -> None:
        self.reduce, self.topk, self.cell_smoothing, self.smoothing = reduce, topk, cell_smoothing, smoothing

    def __call__(
        self, cells: Tensor, frame: torch.Size, size: Tensor | None = None, content: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Score the images and pixels of a frame (H, W) by their cells. (B, h, w) -> (B,), (B, H, W).

        Cells in padding, beyond heights and widths `size` (B, 2), and outside the region of interest `content`
        (B, H, W) are NaN, and pixels there score 0.
        """
        if size is not None:
            image, pixel = cells.new_zeros(len(cells)), cells.new_zeros(len(cells), *frame)
            for members, h, w in group_by_size(size):
                rows, columns = content_shape(cells[members[0]])
                image[members], pixel[members, :h, :w] = self(cells[members, :rows, :columns], torch.Size((h, w)))
            return image, pixel
        if content is not None:
            return self._score_content(cells, content)
        image = reduce_map(smooth(cells, self.cell_smoothing), self.reduce, self._share(cells))  # (B,)
        pixel = F.interpolate(cells[:, None], frame, mode="bilinear", align_corners=False)[:, 0]  # (B, H, W)
        return image, smooth(pixel, self.smoothing * frame[0] / cells.shape[1])

    def _share(self, cells: Tensor) -> float:
        shorter, longer = sorted(cells.shape[1:])
        return self.topk * shorter / longer

    def _score_content(self, cells: Tensor, content: Tensor) -> tuple[Tensor, Tensor]:
        """Score images within a region of interest: averages ignore the cells and pixels outside it."""
        frame, known = content.shape[-2:], ~cells.isnan()  # (B, h, w)
        filled, share = cells.where(known, 0), known.to(cells.dtype)
        smoothed = smooth(filled, self.cell_smoothing) / smooth(share, self.cell_smoothing).clamp(min=1e-6)
        image = reduce_map(smoothed, self.reduce, self._share(cells), known)  # (B,)
        wide, weight = (
            F.interpolate(cell_map[:, None], frame, mode="bilinear", align_corners=False)[:, 0]
            for cell_map in (filled, share)
        )
        inside, sigma = content.to(cells.dtype), self.smoothing * frame[0] / cells.shape[1]
        pixel = wide / weight.clamp(min=1e-6) * inside  # (B, H, W)
        return image, smooth(pixel, sigma) / smooth(inside, sigma).clamp(min=1e-6) * inside


def score_cells(
    cells: Tensor,
    predictors: Mapping[str, Predictor],
    residual_map: ResidualMap,
    scorer: CellScorer,
    batch: Batch,
    fold: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Score the images of a batch by their standardized cells (B, h, w, C); for `fold` see `ResidualMap.forward`.

    Returns:
        Image scores (B,), pixel scores (B, H, W), cell scores (B, h, w), and the first predictor's residuals
        (B, h, w, C).
    """
    residuals = {name: predictor.residual(cells) for name, predictor in predictors.items()}
    maps = residual_map(cells, residuals, fold)  # (B, h, w)
    score, pixel = scorer(maps, batch["image"].shape[-2:], batch.get("size"), batch.get("content"))  # (B,), (B, H, W)
    (first, predictor), *others = predictors.items()
    own = None if others else predictor.image_score(cells, maps)
    return score if own is None else own, pixel, maps, residuals[first]
