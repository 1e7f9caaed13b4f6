"""Combination of several predictors' residuals into one map, each scaled by its residuals on normal images.

Letters: B, N images, h x w cells, C features per cell, K clusters.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adlight.detection.whitening import Whitening, fit_folds, second_moments
from adlight.features.cells import image_means, in_parts
from adlight.features.predictor import Predictor


class ResidualMap(nn.Module):
    """Sums the lengths of the predictors' residuals, each divided by its mean on held-out normal images.

    Attributes:
        folds: per fold of the held-out images, the map that scores it, with whitening fitted without the fold; not
            saved in checkpoints.
    """

    scale: Tensor
    whitening: Any

    def __init__(self, predictors: Mapping[str, Predictor], channels: int) -> None:
        super().__init__()
        self.channels = channels
        whitened = [name for name, predictor in predictors.items() if predictor.whitened]
        self.whitening = nn.ModuleDict({name: Whitening(channels) for name in whitened})
        self.register_buffer("scale", torch.ones(len(predictors)))
        self.folds: list[ResidualMap] = []

    def fit(
        self,
        predictors: Mapping[str, Predictor],
        centers: Tensor,
        held_out: list[Tensor],
        training: Iterator[tuple[Tensor, Tensor]],
    ) -> None:
        """Measure the residuals of normal images.

        Predictors that are not trained always have the same residuals; they are measured only if `folds` is empty.

        Args:
            predictors: the predictors passed to the constructor.
            centers: (K, C), centers of the image clusters.
            held_out: standardized cells (n, h, w, C) of the held-out normal images of each fold.
            training: standardized cells (n, h, w, C) and indices (n,) of additional training images.
        """
        parts = list(training) if len(self.whitening) else []
        means = [image_means(cells) for cells in held_out]  # (n, C) each
        refit = bool(self.folds)
        if not refit:
            self.folds = [ResidualMap(predictors, self.channels).to(centers.device) for _ in held_out]
        for number, (name, predictor) in enumerate(predictors.items()):
            if refit and not predictor.trained:
                continue
            residuals = [_residual(predictor, cells) for cells in held_out]  # (n, h w, C) each
            if predictor.whitened:
                own = [second_moments(*pair, centers) for pair in zip(means, residuals, strict=True)]
                more = [second_moments(image_means(x), _residual(predictor, x, i), centers) for x, i in parts]
                folds = [fold.whitening[name] for fold in self.folds]
                fit_folds(self.whitening[name], folds, centers, own, more)
            folds_and_residuals = zip(self.folds, means, residuals, strict=True)
            lengths = torch.cat([fold.length(name, *pair).flatten() for fold, *pair in folds_and_residuals])
            for residual_map in (self, *self.folds):
                residual_map.scale[number] = lengths[~lengths.isnan()].mean().clamp(min=1e-12)

    def length(self, name: str, mean: Tensor, residual: Tensor) -> Tensor:
        """Measure the lengths of a predictor's residuals, given the image means. (B, C), (B, L, C) -> (B, L)."""
        if name in self.whitening:
            return self.whitening[name](mean, residual)
        return torch.cat([part.square().mean(-1) for part in in_parts(residual)]).sqrt()

    def forward(self, cells: Tensor, residuals: Mapping[str, Tensor], fold: Tensor | None = None) -> Tensor:
        """Score standardized cells (B, h, w, C) by each predictor's residuals (B, h, w, C). -> (B, h, w).

        Held-out images are scored without their own fold, given by `fold` (B,); None for other images.
        """
        if fold is not None:
            maps = cells.new_empty(cells.shape[:3])
            for k in fold.unique().tolist():
                rows = (fold == k).to(cells.device)
                maps[rows] = self.folds[k](cells[rows], {name: x[rows] for name, x in residuals.items()})
            return maps
        mean = image_means(cells) if len(self.whitening) else cells.new_empty(0)  # (B, C)
        lengths = [self.length(name, mean, x.flatten(1, 2)) for name, x in residuals.items()]  # (B, h w) each
        total = sum(length / scale for length, scale in zip(lengths, self.scale, strict=True))
        return torch.as_tensor(total).view(cells.shape[:3])


def _residual(predictor: Predictor, cells: Tensor, own: Tensor | None = None) -> Tensor:
    """Compute residuals in batches. (n, h, w, C) -> (n, h w, C)."""
    indices = [None] * len(cells.split(64)) if own is None else own.split(64)
    parts = [predictor.residual(x, i) for x, i in zip(cells.split(64), indices, strict=True)]
    return torch.cat(parts).flatten(1, 2)
