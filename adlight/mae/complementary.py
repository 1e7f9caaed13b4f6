"""Complementary masks on features (article, section 2, eq. 2 and 3): n views; each token is visible in exactly one.

Letters: B images, h x w cells, L tokens after folding, C features of a cell, P = C fold^2 values of a token, n views.
"""

from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Generator, Tensor, nn

from adlight.data.frames import group_by_size
from adlight.features.cells import in_image, is_padded
from adlight.features.predictor import Predictor, mean_square
from adlight.mae.masking import fixed_masks, partition_masks
from adlight.mae.network import MaskedAutoencoder
from adlight.mae.scorer import aggregate
from adlight.mae.tokens import Fold, fold_cells, unfold_cells
from adlight.settings import Seed, checked
from adlight.types import UserError


class ComplementaryMaskedNetwork(Predictor):
    """Predicts each cell of a feature map by the mean over the n - 1 views that hide it, with a `MaskedAutoencoder`.

    Args:
        channels: C.
        views: n; a view shows one token in n.
        width: width of the encoder and the decoder.
        heads: number of attention heads.
        encoder_depth, decoder_depth: number of blocks.
        fold: side, in cells, of the square that becomes a token.
        seed: seed of the masks, which are the same for all images of a shape; training draws new masks at every step.
    """

    trained = True

    @checked
    def __init__(
        self,
        channels: PositiveInt,
        views: Annotated[int, Field(ge=2)] = 2,
        width: PositiveInt = 160,
        heads: PositiveInt = 5,
        encoder_depth: PositiveInt = 2,
        decoder_depth: PositiveInt = 2,
        fold: Fold = 2,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.views, self.fold, self.seed = views, fold, seed
        sizes = encoder_depth, width, heads, decoder_depth, width, heads
        self.network = MaskedAutoencoder((1, 1), channels * fold**2, 0.0, *sizes)

    def forward(self, cells: Tensor, rng: Generator | None = None) -> Tensor:
        """Predict every cell; padded images are grouped by size. (B, h, w, C) -> (B, h, w, C).

        `rng` draws the masks for training; None uses the masks drawn with the seed.
        """
        if not is_padded(cells):
            return self._predict(cells, rng)
        inside = in_image(cells)  # (B, h, w)
        size = torch.stack([_extent(inside.any(2)), _extent(inside.any(1))], 1)  # (B, 2)
        cells = cells.where(inside[..., None], 0)  # within its size, an image has NaN outside the region of interest
        predicted = torch.full_like(cells, torch.nan)
        for rows, h, w in group_by_size(size):
            predicted[rows, :h, :w] = self._predict(cells[rows, :h, :w], rng)
        return predicted

    def _predict(self, x: Tensor, rng: Generator | None) -> Tensor:
        """Predict the cells of images without padding. (B, h, w, C) -> (B, h, w, C)."""
        tokens, grid = fold_cells(x, self.fold)  # (B, L, P)
        if self.views > tokens.shape[1]:
            raise UserError(
                f"{self.views} views need at least as many tokens, but an image has {tokens.shape[1]}: lower views or "
                "fold, or raise the input size"
            )
        if rng is None:
            mask, visible = fixed_masks("complementary", 1 - 1 / self.views, tokens.shape[1], self.seed)  # (n, L)
        else:
            mask, visible = partition_masks(tokens.shape[1], self.views, rng), None  # (n, L)
        views = self.network(tokens, mask, grid, visible)  # (n, B, L, P)
        return unfold_cells(aggregate(views, mask, tokens), self.fold, grid, x.shape)  # (B, h, w, C)

    def loss(self, cells: Tensor, rng: Generator) -> Tensor:
        """Compute the mean squared residual under masks drawn by `rng`. (B, h, w, C) -> scalar."""
        return mean_square(self(cells, rng), cells)

    def summary(self) -> str:
        """Describe the trained network."""
        size = sum(p.numel() for p in self.parameters()) / 1e6
        return f"{self.views} complementary masks, a network of {size:.1f} M parameters"

    def matrices(self) -> list[nn.Parameter]:
        """List the blocks' weight matrices, for Muon."""
        return self.network.matrices()


def _extent(inside: Tensor) -> Tensor:
    """Count the positions up to the last one inside. (B, N) bool -> (B,)."""
    return (inside * torch.arange(1, inside.shape[1] + 1, device=inside.device)).amax(1)
