"""Neighbour-masked attention: every token is predicted from all tokens outside its neighbourhood, in one pass.

It is the opposite extreme of the article's complementary masks: as if each of L views hid one token with its neighbours
and showed all others. Letters: B images, h x w cells, L tokens after folding, C features of a cell, P = C fold^2 values
of a token, D width.
"""

from functools import lru_cache

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from adlight.features.cells import in_image, is_padded
from adlight.features.predictor import Predictor, mean_square
from adlight.mae.tokens import Fold, fold_cells, sincos_positions, unfold_cells
from adlight.settings import Share, checked
from adlight.types import UserError

CPU = torch.device("cpu")


class NeighbourMaskedNetwork(Predictor):
    """Predicts each cell of a feature map from the cells outside its neighbourhood.

    Tokens are encoded separately: y_j = e_j + MLP(LN e_j), e_j = Linear(x_j) + p_j. Queries q_i = m + p_i attend to the
    y_j outside their neighbourhood and never to each other, so that the prediction at i depends on no token inside it.
    (The receptive fields of the backbone's features still overlap.)

    Args:
        channels: C.
        width: D.
        heads: number of attention heads.
        depth: number of blocks.
        fold: side, in cells, of the square that becomes a token.
        radius: tokens up to this many rows and columns away are hidden; 1 hides 3 x 3 tokens.
        hard: fraction of a batch's cells, those predicted best, whose gradients are scaled by 0.1.
    """

    trained = True

    @checked
    def __init__(
        self,
        channels: PositiveInt,
        width: PositiveInt = 160,
        heads: PositiveInt = 5,
        depth: PositiveInt = 3,
        fold: Fold = 2,
        radius: NonNegativeInt = 1,
        hard: Share = 0.9,
    ) -> None:
        super().__init__()
        if width % heads or width % 4:
            raise ValueError(f"width {width} must be a multiple of heads {heads} and of 4")
        self.fold, self.radius, self.width, self.hard = fold, radius, width, hard
        values = channels * fold**2
        self.patch_embed = nn.Linear(values, width)
        self.norm = nn.LayerNorm(width)
        self.mlp = _mlp(width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(CrossBlock(width, heads) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, values)
        self.apply(_initialize_weights)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Predict every cell. (B, h, w, C) -> (B, h, w, C)."""
        inside = in_image(x)[..., None]  # (B, h, w, 1)
        tokens, grid = fold_cells(x.where(inside, 0), self.fold)  # (B, L, P)
        position = sincos_positions(grid, self.width, x.device)  # (L, D)
        visible = outside_neighbourhood(*grid, self.radius, x.device)  # (L, L)
        if is_padded(x):
            visible = hide_padding(visible, fold_cells(inside.float(), self.fold)[0].any(-1))  # (B, 1, L, L)
        tokens = self.patch_embed(tokens) + position  # (B, L, D)
        tokens = tokens + self.mlp(self.norm(tokens))  # (B, L, D)
        query = (self.mask_token + position).expand(x.shape[0], -1, -1)  # (B, L, D)
        for block in self.blocks:
            query = block(query, tokens, visible)  # (B, L, D)
        return unfold_cells(self.decoder_pred(self.decoder_norm(query)), self.fold, grid, x.shape)  # (B, h, w, C)

    def loss(self, cells: Tensor, rng: Generator) -> Tensor:
        """Compute the mean squared residual. (B, h, w, C) -> scalar."""
        return mean_square(self(cells), cells, self.hard)

    def summary(self) -> str:
        """Describe the trained network."""
        size = sum(p.numel() for p in self.parameters()) / 1e6
        return f"neighbour-masked attention of {size:.1f} M parameters"

    def matrices(self) -> list[nn.Parameter]:
        """List the weight matrices, for Muon."""
        return [p for part in (self.mlp, self.blocks) for p in part.parameters() if p.ndim == 2]


class CrossBlock(nn.Module):
    """Attention of queries to tokens, which stay unchanged, then an MLP. (B, L, D) -> (B, L, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm_tokens, self.norm2 = (nn.LayerNorm(width) for _ in range(3))
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.mlp = _mlp(width)

    def forward(self, query: Tensor, tokens: Tensor, visible: Tensor) -> Tensor:
        """(B, L, D), (B, L, D), (L, L) or (B, 1, L, L) bool -> (B, L, D)."""
        tokens = self.norm_tokens(tokens)
        projected = self.q(self.norm1(query)), self.k(tokens), self.v(tokens)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in projected)  # (B, heads, L, D / heads)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        query = query + self.proj(attended.transpose(1, 2).flatten(2))  # (B, L, D)
        return query + self.mlp(self.norm2(query))  # (B, L, D)


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # the result is cached, and training may use it later
def outside_neighbourhood(height: int, width: int, radius: int, device: torch.device = CPU) -> Tensor:
    """Find the tokens visible to each query, more than `radius` rows or columns away. -> (L, L) bool.

    Raises:
        UserError: the grid is so small that some query would see no token.
    """
    row, column = torch.arange(height, device=device), torch.arange(width, device=device)
    far_row = (row[:, None] - row).abs() > radius  # (h, h)
    far_column = (column[:, None] - column).abs() > radius  # (w, w)
    visible = far_row[:, None, :, None] | far_column[None, :, None, :]  # (h, w, h, w)
    if not visible.flatten(2).any(-1).all():
        raise UserError(
            f"a grid of {height} x {width} tokens is too small to hide neighbourhoods of radius {radius}: "
            "raise the input size, or lower fold or radius"
        )
    return visible.reshape(height * width, height * width)


def hide_padding(visible: Tensor, known: Tensor) -> Tensor:
    """Hide padding tokens, except from queries that see no others. (L, L), (B, L) -> (B, 1, L, L) bool."""
    both = visible & known[:, None, None]
    return both | (visible & ~both.any(-1, keepdim=True))


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


def _initialize_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
