"""Autoencoders for any image size: a U-Net with or without skips, and a plain convolutional autoencoder.

Letters: D channels of a stage, h x w its grid.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from adlight.settings import Depth, checked


class UNet(nn.Module):
    """U-Net (Ronneberger 2015): stages of two 3 x 3 convolutions, between which the grid is halved, and back again.

    With skips, each stage of the decoder also receives the encoder's map of the same grid, so that it can copy its
    input. Group norms (Wu 2018) are added; they keep the outputs of images independent of each other.

    Args:
        channels: C, channels of the image.
        width: number of channels of the first stage, doubled at each further stage; 64 in the original.
        depth: number of times the grid is halved; 4 in the original.
        skips: whether the decoder receives the encoder's maps.
    """

    @checked
    def __init__(
        self, channels: PositiveInt = 3, width: PositiveInt = 16, depth: Depth = 4, skips: bool = True
    ) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(depth + 1)]
        self.skips = skips
        self.stem = _double_conv(channels, width)
        self.down = nn.ModuleList(_double_conv(a, b) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_double_conv(a + b if skips else b, a) for a, b in reversed(list(pairwise(widths))))
        self.head = nn.Conv2d(width, channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Reconstruct images in [0, 1]. (B, C, H, W) -> (B, C, H, W)."""
        maps = [self.stem(image)]  # (B, D, H, W)
        for layer in self.down:
            maps.append(layer(F.max_pool2d(maps[-1], 2, ceil_mode=True)))  # (B, 2 D, h / 2, w / 2)
        x = maps.pop()
        for layer, skip in zip(self.up, reversed(maps), strict=True):
            x = F.interpolate(x, skip.shape[-2:])  # nearest, (B, 2 D, h, w)
            x = layer(torch.cat([x, skip], 1) if self.skips else x)  # (B, D, h, w)
        return self.head(x).sigmoid()


class ConvAutoencoder(nn.Module):
    """Plain convolutional autoencoder (Bergmann 2018): strided convolutions to a narrow bottleneck, and back.

    Args:
        channels: C, channels of the image.
        width: number of channels of the first stage, doubled at each further stage up to 8 times `width`.
        depth: number of times the grid is halved.
        latent: number of channels of the bottleneck, on the coarsest grid.
    """

    @checked
    def __init__(
        self, channels: PositiveInt = 3, width: PositiveInt = 32, depth: Depth = 4, latent: PositiveInt = 16
    ) -> None:
        super().__init__()
        self.encoder = ConvEncoder(channels, width, depth)
        self.squeeze = nn.Conv2d(self.encoder.widths[-1], latent, 1)
        self.expand = nn.Conv2d(latent, self.encoder.widths[-1], 1)
        self.decoder = ConvDecoder(self.encoder.widths)

    def forward(self, image: Tensor) -> Tensor:
        """Reconstruct images in [0, 1]. (B, C, H, W) -> (B, C, H, W)."""
        z = self.squeeze(self.encoder(image))  # (B, latent, h, w)
        return self.decoder(self.expand(z), image.shape[-2:])  # (B, C, H, W)


class ConvEncoder(nn.Module):
    """Convolutions of stride 2 with leaky ReLU; `widths` lists the channels of the image and of each stage."""

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.widths = [channels, *(width * min(2**i, 8) for i in range(depth))]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(self.widths))

    def forward(self, x: Tensor) -> Tensor:
        """Encode images. (B, C, H, W) -> (B, D, h, w), h = ceil(H / 2^depth)."""
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        return x


class ConvDecoder(nn.Module):
    """The inverse of `ConvEncoder`: each stage doubles the grid and applies a convolution."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in reversed(list(pairwise(widths))))

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Decode to images in [0, 1] of the given size. (B, D, h, w), (H, W) -> (B, C, H, W)."""
        grids = halved_sizes(size, len(self.layers))
        for i, layer in enumerate(self.layers):
            x = layer(F.interpolate(x if i == 0 else F.leaky_relu(x, 0.2), grids[-2 - i]))  # (B, D / 2, 2 h, 2 w)
        return x.sigmoid()


def halved_sizes(size: Sequence[int], depth: int) -> list[tuple[int, int]]:
    """List the grids of an encoder: the image's size, halved up to `depth` times and rounded up."""
    return [(-(-size[0] // 2**i), -(-size[1] // 2**i)) for i in range(depth + 1)]


def _double_conv(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    groups = next(n for n in (8, 4, 2, 1) if after % n == 0)
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1), nn.GroupNorm(groups, after), nn.ReLU()]
    return nn.Sequential(*layers)
