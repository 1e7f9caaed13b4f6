"""The multi-mask masked autoencoder (article, section 2; He 2021 for the plain one).

Letters: B images, C channels, H x W pixels, L patches, V visible patches of a view, P values a patch, n views,
D width (De of the encoder, Dd of the decoder).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adlight.mae.tokens import patchify, sincos_positions


class Block(nn.Module):
    """Pre-norm transformer block: self-attention, then an MLP of 4 D. (B, L, D) -> (B, L, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        b, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, length, 3, self.heads, width // self.heads)  # (B, L, 3, h, D/h)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, h, L, D/h) each
        attended = F.scaled_dot_product_attention(q, k, v)  # (B, h, L, D/h)
        x = x + self.project(attended.transpose(1, 2).reshape(b, length, width))  # (B, L, D)
        return x + self.contract(F.gelu(self.expand(self.norm2(x))))  # (B, L, D)


class MaskedAutoencoder(nn.Module):
    """Predicts every patch of an image from the visible patches of each of n views.

    Args:
        image_size: H = W in pixels.
        channels: C.
        patch_size: side of a patch in pixels; divides image_size.
        encoder_depth, encoder_width, encoder_heads: E blocks of the encoder; the article's E2 with ViT-B's widths.
        decoder_depth, decoder_width, decoder_heads: D blocks of the decoder; the article's D4.
        encoder: `separate`: each view is a sequence of its own, what is hidden stays unknown. `joint`: the
            article's text read literally: one sequence of all patches goes through the encoder, and the views part
            only before the decoder, so that tokens know what is hidden from them (a leak, kept for comparison).

    Raises:
        ValueError: sizes that do not fit one another.
    """

    def __init__(
        self,
        image_size: int = 224,
        channels: int = 3,
        patch_size: int = 16,
        encoder_depth: int = 2,
        encoder_width: int = 768,
        encoder_heads: int = 12,
        decoder_depth: int = 4,
        decoder_width: int = 512,
        decoder_heads: int = 16,
        encoder: str = "separate",
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"image_size {image_size} is not a multiple of patch_size {patch_size}")
        for width, heads in ((encoder_width, encoder_heads), (decoder_width, decoder_heads)):
            if width % heads:
                raise ValueError(f"width {width} is not a multiple of its {heads} heads")
        if encoder not in ("separate", "joint"):
            raise ValueError(f"encoder {encoder!r} is unknown: separate or joint")
        self.image_size, self.patch_size, self.joint = image_size, patch_size, encoder == "joint"
        side = image_size // patch_size
        self.num_patches = side * side
        values = channels * patch_size**2

        self.embed = nn.Linear(values, encoder_width)
        self.encoder = nn.ModuleList(Block(encoder_width, encoder_heads) for _ in range(encoder_depth))
        self.encoder_norm = nn.LayerNorm(encoder_width)
        self.bridge = nn.Linear(encoder_width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(decoder_width))
        self.decoder = nn.ModuleList(Block(decoder_width, decoder_heads) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(decoder_width)
        self.predict = nn.Linear(decoder_width, values)
        self.encoder_positions: Tensor
        self.decoder_positions: Tensor
        self.register_buffer("encoder_positions", sincos_positions(side, encoder_width), persistent=False)
        self.register_buffer("decoder_positions", sincos_positions(side, decoder_width), persistent=False)
        self.initialise()

    def initialise(self) -> None:
        """Xavier for matrices, zeros for biases (He 2021); predictions start at mid-grey."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.constant_(self.predict.bias, 0.5)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Predict every view of every image. (B, C, H, W), (n, L) -> patches (n, B, L, P).

        Args:
            image: values in [0, 1].
            mask: bool, True = hidden, the same for all images; on the CPU, so that no step waits for the device.
        """
        n, b = len(mask), len(image)
        tokens = self.embed(patchify(image, self.patch_size) - 0.5) + self.encoder_positions  # (B, L, De)
        if self.joint:
            tokens = self.encode(tokens)  # (B, L, De)
        x = self.mask_token.to(tokens.dtype).expand(n, b, self.num_patches, -1)  # (n, B, L, Dd)
        x = self.fill(x, tokens, mask) + self.decoder_positions  # (n, B, L, Dd)
        x = x.flatten(0, 1)  # (nB, L, Dd)
        for block in self.decoder:
            x = block(x)  # (nB, L, Dd)
        return self.predict(self.decoder_norm(x)).unflatten(0, (n, b))  # (n, B, L, P)

    def encode(self, tokens: Tensor) -> Tensor:
        """Encoder blocks. (B, V, De) -> (B, V, De)."""
        for block in self.encoder:
            tokens = block(tokens)
        return self.encoder_norm(tokens)

    def fill(self, x: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Put each view's encoded visible patches in their places. (n, B, L, Dd), (B, L, De), (n, L) -> like x.

        196 patches in 5 or 10 views make groups of two sizes: views of one size share one pass through the encoder.
        Padding with an attention mask is no faster (experiments/speed, row `views`), and needs the mask's kernels.
        """
        n, b = len(mask), len(tokens)
        visible = ~mask.cpu()
        sizes = visible.sum(1)
        places, filled = [], []
        for size in sizes.unique().tolist():
            views = (sizes == size).nonzero()[:, 0]  # (g,)
            patch = visible[views].nonzero()[:, 1]  # (gV,)
            place = views.repeat_interleave(size) * self.num_patches + patch  # (gV,)
            patch, place = (index.to(x.device, non_blocking=True) for index in (patch, place))
            group = tokens.index_select(1, patch).unflatten(1, (-1, size)).transpose(0, 1).flatten(0, 1)  # (gB, V, De)
            if not self.joint:
                group = self.encode(group)  # (gB, V, De)
            filled.append(self.bridge(group).unflatten(0, (-1, b)).transpose(1, 2).flatten(0, 1))  # (gV, B, Dd)
            places.append(place)
        flat = x.transpose(1, 2).reshape(n * self.num_patches, b, -1)  # (nL, B, Dd)
        flat = flat.index_copy(0, torch.cat(places), torch.cat(filled).to(flat.dtype))  # (nL, B, Dd)
        return flat.unflatten(0, (n, -1)).transpose(1, 2)  # (n, B, L, Dd)
