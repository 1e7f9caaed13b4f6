"""The multi-mask masked autoencoder (article, section 2; the plain MAE: He 2021), with the names of MAE and timm.

Letters: B images, L tokens of an image, V visible tokens of a view, P values of a token, n views, g views of equal
size, D width (De of the encoder, Dd of the decoder).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from adlight.mae.masking import split_by_size
from adlight.mae.tokens import sincos_positions
from adlight.settings import checked


class Block(nn.Module):
    """Pre-norm transformer block: self-attention, then an MLP of width 4 D. (B, L, D) -> (B, L, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        b, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, length, 3, self.heads, width // self.heads)  # (B, L, 3, h, D/h)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, h, L, D/h) each
        attended = F.scaled_dot_product_attention(q, k, v)  # (B, h, L, D/h)
        x = x + self.proj(attended.transpose(1, 2).reshape(b, length, width))  # (B, L, D)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))  # (B, L, D)


class MaskedAutoencoder(nn.Module):
    """Predicts every token of an image from the visible tokens of each of n views.

    Args:
        grid: rows and columns of the tokens; L is their product.
        token_dim: P.
        token_mean: mean token value, subtracted before embedding and used to initialize predictions.
        encoder_depth, encoder_width, encoder_heads: size of the encoder; the article has 2 blocks with ViT-B's widths.
        decoder_depth, decoder_width, decoder_heads: size of the decoder; the article has 4 blocks.
            Widths are multiples of 4 and of the number of heads.
        encoder: `separate`: the encoder sees only the visible tokens of each view. `joint`, the article's text read
            literally: all tokens pass through the encoder as one sequence and are split into views before the decoder,
            so that visible tokens contain information about hidden tokens (a leak, kept for comparison).
    """

    encoder_positions: Tensor
    decoder_positions: Tensor

    @checked
    def __init__(
        self,
        grid: tuple[int, int] = (14, 14),
        token_dim: PositiveInt = 768,
        token_mean: float = 0.5,
        encoder_depth: PositiveInt = 2,
        encoder_width: PositiveInt = 768,
        encoder_heads: PositiveInt = 12,
        decoder_depth: PositiveInt = 4,
        decoder_width: PositiveInt = 512,
        decoder_heads: PositiveInt = 16,
        encoder: Literal["separate", "joint"] = "separate",
    ) -> None:
        super().__init__()
        for width, heads in ((encoder_width, encoder_heads), (decoder_width, decoder_heads)):
            if width % heads:
                raise ValueError(f"width {width} is not a multiple of its {heads} heads")
        self.num_patches, self.token_mean, self.joint = grid[0] * grid[1], token_mean, encoder == "joint"

        self.patch_embed = nn.Linear(token_dim, encoder_width)
        self.encoder_blocks = nn.ModuleList(Block(encoder_width, encoder_heads) for _ in range(encoder_depth))
        self.encoder_norm = nn.LayerNorm(encoder_width)
        self.decoder_embed = nn.Linear(encoder_width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(decoder_width))
        self.decoder_blocks = nn.ModuleList(Block(decoder_width, decoder_heads) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(decoder_width)
        self.decoder_pred = nn.Linear(decoder_width, token_dim)
        self.register_buffer("encoder_positions", sincos_positions(grid, encoder_width), persistent=False)
        self.register_buffer("decoder_positions", sincos_positions(grid, decoder_width), persistent=False)
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """Draw matrices by Xavier's method and zero biases (He 2021); predictions start at the tokens' mean."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.constant_(self.decoder_pred.bias, self.token_mean)

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor,
        grid: tuple[int, int] | None = None,
        visible: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Predict all tokens of every view. (B, L, P), (n, L) -> (n, B, L, P).

        Args:
            tokens: all tokens of the images.
            mask: bool, True = hidden, the same for all images; on the CPU, so that no step waits for the device.
            grid: rows and columns of the tokens; None for the constructor's.
            visible: `split_by_size(~mask)` if precomputed; the trace of an exported graph cannot compute it.
        """
        encoder_positions, decoder_positions = self.positions(grid)  # (L, De), (L, Dd)
        x = self.patch_embed(tokens - self.token_mean) + encoder_positions  # (B, L, De)
        if self.joint:
            x = self.forward_encoder(x)  # (B, L, De)
        views = []
        for group in split_by_size(~mask) if visible is None else visible:  # views of equal size share one pass
            index = group.to(x.device, non_blocking=True)  # (g, V)
            z = x.index_select(1, index.flatten()).unflatten(1, index.shape)  # (B, g, V, De)
            z = z.transpose(0, 1).flatten(0, 1)  # (gB, V, De)
            if not self.joint:
                z = self.forward_encoder(z)  # (gB, V, De)
            z = self.decoder_embed(z).unflatten(0, (len(index), -1))  # (g, B, V, Dd)
            views.append(self.unshuffle(z, index, mask.shape[1]))  # (g, B, L, Dd)
        return self.forward_decoder(torch.cat(views) + decoder_positions)  # (n, B, L, P)

    def positions(self, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        """Return the position embeddings of a grid, by default the constructor's. -> (L, De), (L, Dd)."""
        if grid is None:
            return self.encoder_positions, self.decoder_positions
        device = self.mask_token.device
        widths = self.encoder_positions.shape[1], self.decoder_positions.shape[1]
        return sincos_positions(grid, widths[0], device), sincos_positions(grid, widths[1], device)

    def matrices(self) -> list[nn.Parameter]:
        """List the blocks' weight matrices, for Muon."""
        return [p for block in (*self.encoder_blocks, *self.decoder_blocks) for p in block.parameters() if p.ndim == 2]

    def forward_encoder(self, x: Tensor) -> Tensor:
        """(B, V, De) -> (B, V, De)."""
        for block in self.encoder_blocks:
            x = block(x)
        return self.encoder_norm(x)

    def unshuffle(self, z: Tensor, visible: Tensor, length: int) -> Tensor:
        """Put visible tokens at their positions, mask tokens elsewhere. (g, B, V, Dd), (g, V) -> (g, B, L, Dd)."""
        g = len(z)
        x = self.mask_token.expand(g * length, z.shape[1], -1)  # (gL, B, Dd)
        index = visible + length * torch.arange(g, device=z.device)[:, None]  # (g, V)
        x = x.index_copy(0, index.flatten(), z.transpose(1, 2).flatten(0, 1).to(x.dtype))  # (gL, B, Dd)
        return x.unflatten(0, (g, length)).transpose(1, 2)  # (g, B, L, Dd)

    def forward_decoder(self, x: Tensor) -> Tensor:
        """(n, B, L, Dd) -> (n, B, L, P)."""
        views, x = x.shape[:2], x.flatten(0, 1)  # (nB, L, Dd)
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x)).unflatten(0, views)
