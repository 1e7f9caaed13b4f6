"""Generator, critic and encoder of the GAN (thesis, section 3.3.1 and figure 3-2).

Images of 28 and 30 pixels get the layers of the thesis; other sizes, 4 or 7 times a power of two, as many stride-2
stages as needed. Letters: Z latent size, F critic features, S side of the smallest feature map.
"""

import math
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import AfterValidator, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from adlight.settings import checked

THESIS_PADDING = {28: 1, 30: 0}  # kernel 8 and stride 2 turn 12 pixels into 30, or into 28 with padding 1
SIZES = {base * 2**k: (base, k) for base in (4, 7) for k in range(1, 8) if base * 2**k <= 512}


def resolution_schedule(image_size: int) -> tuple[int, int]:
    """Return the side of the smallest feature map and the number of stride-2 stages between it and the image.

    Raises:
        ValueError: an unsupported image size.
    """
    if image_size in THESIS_PADDING:
        return 4, 3
    if image_size not in SIZES:
        nearest = sorted(sorted({*SIZES, *THESIS_PADDING}, key=lambda size: abs(size - image_size))[:3])
        raise ValueError(
            f"the GAN cannot generate image_size={image_size}: use 28, 30, or 4 or 7 times a power of two "
            f"(nearest: {', '.join(map(str, nearest))})"
        )
    return SIZES[image_size]


def _check_size(image_size: int) -> int:
    resolution_schedule(image_size)
    return image_size


Square = Annotated[int, AfterValidator(_check_size)]  # side of the images, which must be square


def stage_widths(base: int, stages: int) -> list[int]:
    """Return the channels after each critic stage: doubling from `base`, at most 8 times as many."""
    return [base * min(2**k, 8) for k in range(stages)]


class Generator(nn.Module):
    """Generates images in [0, 1] from latents.

    Args:
        image_size: side in pixels, see `resolution_schedule`.
        channels: 1 or 3.
        latent: Z.
        ngf: number of channels before the last layer.
    """

    @checked
    def __init__(
        self, image_size: Square = 28, channels: PositiveInt = 1, latent: PositiveInt = 128, ngf: PositiveInt = 64
    ) -> None:
        super().__init__()
        self.latent, self.channels, self.image_size = latent, channels, image_size
        self.side, stages = resolution_schedule(image_size)
        widths = stage_widths(ngf, stages)[::-1]  # such as 4 ngf, 2 ngf, ngf
        self.project = nn.Linear(latent, widths[0] * self.side**2)
        if image_size in THESIS_PADDING:
            layers: list[nn.Module] = [nn.ConvTranspose2d(a, b, 5) for a, b in pairwise(widths)]
            layers.append(nn.ConvTranspose2d(ngf, channels, 8, stride=2, padding=THESIS_PADDING[image_size]))
        else:
            layers = [nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in pairwise([*widths, channels])]
        self.up = nn.ModuleList(layers)

    def forward(self, z: Tensor) -> Tensor:
        """Generate images. (B, Z) -> (B, C, H, W)."""
        x = F.relu(self.project(z)).unflatten(1, (-1, self.side, self.side))  # (B, 4 ngf, S, S)
        for layer in self.up[:-1]:
            x = F.relu(layer(x))  # thesis: (B, 2 ngf, 8, 8), (B, ngf, 12, 12)
        return self.up[-1](x).sigmoid()  # (B, C, H, W)


class Backbone(nn.Module):
    """Strided convolutions with ReLU, without pooling or normalization. (B, C, H, W) -> (B, F)."""

    def __init__(self, image_size: int, channels: int, ndf: int) -> None:
        super().__init__()
        self.image_size, self.channels = image_size, channels
        side, stages = resolution_schedule(image_size)
        widths = [channels, *stage_widths(ndf, stages)]
        self.down = nn.ModuleList(nn.Conv2d(a, b, 5, stride=2, padding=2) for a, b in pairwise(widths))
        self.num_features = widths[-1] * side**2

    def feature_maps(self, image: Tensor) -> list[Tensor]:
        """Return the feature maps of all layers in order. (B, C, H, W) in [0, 1] -> list of (B, D, S, S)."""
        maps = [image]
        for layer in self.down:
            maps.append(F.relu(layer(maps[-1])))  # thesis: (B, ndf, 14, 14), (B, 2 ndf, 7, 7), (B, 4 ndf, 4, 4)
        return maps[1:]

    def features(self, image: Tensor) -> Tensor:
        """Return the last feature map, flattened. (B, C, H, W) -> (B, F)."""
        return self.feature_maps(image)[-1].flatten(1)


class Critic(Backbone):
    """Scores how real images look; higher is more real.

    Args:
        image_size: side in pixels, see `resolution_schedule`.
        channels: 1 or 3.
        ndf: number of channels after the first layer.
    """

    @checked
    def __init__(self, image_size: Square = 28, channels: PositiveInt = 1, ndf: PositiveInt = 64) -> None:
        super().__init__(image_size, channels, ndf)
        self.head = nn.Linear(self.num_features, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Score images in [0, 1]. (B, C, H, W) -> (B, 1)."""
        return self.head(self.features(image))

    def input_gradient(self, image: Tensor) -> Tensor:
        """Return the gradient of each score with respect to its image, differentiable in the weights.

        A ReLU network is piecewise linear, so the gradient is the head's weights passed back through the transposed
        convolutions with the inactive units masked out. Autograd's double backward gives the same result but takes
        longer, as it also differentiates the units' signs, whose gradient is zero.

        (B, C, H, W) -> (B, C, H, W).
        """
        sizes, active = [], []
        with torch.no_grad():
            x = image
            for layer in self.down:
                sizes.append(x.shape[-1])
                x = F.relu_(layer(x))  # (B, D, S, S)
                active.append(x > 0)
        gradient = self.head.weight.view(1, *x.shape[1:])
        for layer, size, mask in zip(reversed(self.down), reversed(sizes), reversed(active), strict=True):
            assert isinstance(layer, nn.Conv2d)
            padding = (size - 1) % 2  # stride 2 drops the last column of an even size
            gradient = F.conv_transpose2d(gradient * mask, layer.weight, stride=2, padding=2, output_padding=padding)
        return gradient


class Encoder(Backbone):
    """Estimates the latent whose image is nearest, by the critic's layers with Z outputs (Schlegl 2019, f-AnoGAN).

    Args:
        image_size, channels, ndf: see `Critic`.
        latent: Z.
        normalize_latent: whether latents are scaled to norm sqrt(Z), around which the prior is concentrated, so that
            the generator only sees latents like those in its training.
    """

    @checked
    def __init__(
        self,
        image_size: Square = 28,
        channels: PositiveInt = 1,
        latent: PositiveInt = 128,
        ndf: PositiveInt = 64,
        normalize_latent: bool = False,
    ) -> None:
        super().__init__(image_size, channels, ndf)
        self.latent, self.normalize_latent = latent, normalize_latent
        self.head = nn.Linear(self.num_features, latent)

    def forward(self, image: Tensor) -> Tensor:
        """Encode images in [0, 1]. (B, C, H, W) -> (B, Z)."""
        z = self.head(self.features(image))
        return F.normalize(z) * math.sqrt(self.latent) if self.normalize_latent else z
