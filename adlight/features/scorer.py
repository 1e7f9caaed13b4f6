"""From scores of cells to scores of images and pixels."""

from collections.abc import Mapping

import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.nn import functional as F

from adlight.data.frames import group_by_size
from adlight.detection.maps import Reduction, reduce_map, smooth
from adlight.features.predictor import Predictor, content_shape
from adlight.features.residuals import ResidualMap
from adlight.settings import PositiveShare, checked
from adlight.types import Batch


class CellScorer:
    """Smooths cells and reduces them to image scores; brings them to the image's pixels.

    Args:
        reduce: `topk`, the mean of the largest cells; `max` or `mean`.
        topk: their share of the cells of the largest square in the image: defects of a strip are no larger than those
            of a square as high.
        cell_smoothing: sigma of the Gaussian before that, in cells; 0 = none.
        smoothing: sigma of the Gaussian over the map, in cells; 0 = none. A quarter is 4 pixels where a cell has 16.

    Raises:
        ValueError: an unknown reduction, or a number out of range.
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
        """Score images and pixels. (B, h, w), (H, W) -> (B,), (B, H, W).

        Args:
            cells: their scores; NaN beyond the content.
            frame: height and width of the images.
            size: (B, 2), those of the content where images are padded; pixels beyond have 0.
            content: (B, H, W) bool, the region of interest; pixels outside have 0.
        """
        if size is not None:
            image, pixel = cells.new_zeros(len(cells)), cells.new_zeros(len(cells), *frame)
            for at, h, w in group_by_size(size):
                rows, columns = content_shape(cells[at[0]])
                image[at], pixel[at, :h, :w] = self(cells[at, :rows, :columns], torch.Size((h, w)))
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
        """Do so by what is known: averages leave out the cells and pixels that do not count."""
        frame, known = content.shape[-2:], ~cells.isnan()  # (B, h, w)
        filled, share = cells.where(known, 0), known.to(cells.dtype)
        smoothed = smooth(filled, self.cell_smoothing) / smooth(share, self.cell_smoothing).clamp(min=1e-6)
        image = reduce_map(smoothed, self.reduce, self._share(cells), known)  # (B,)
        wide, weight = (
            F.interpolate(one[:, None], frame, mode="bilinear", align_corners=False)[:, 0] for one in (filled, share)
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
    """Score images by their cells. (B, h, w, C) -> images (B,), pixels (B, H, W), cells (B, h, w), first residuals.

    Args:
        cells: standardized.
        predictors: by name.
        residual_map: measures their residuals.
        scorer: from cells to images and pixels.
        batch: the images.
        fold: (B,) of held-out images, see `ResidualMap.forward`.
    """
    residuals = {name: one.residual(cells) for name, one in predictors.items()}
    maps = residual_map(cells, residuals, fold)  # (B, h, w)
    score, pixel = scorer(maps, batch["image"].shape[-2:], batch.get("size"), batch.get("content"))  # (B,), (B, H, W)
    (first, predictor), *others = predictors.items()
    own = None if others else predictor.image_score(cells, maps)
    return score if own is None else own, pixel, maps, residuals[first]
