"""Generator, critic and encoder of residual blocks (Gulrajani 2017, appendix: CIFAR-10), an option for larger images.

All blocks of a network have the same number of channels. Images have sides of 4 or 7 times a power of two pixels.
Letters: Z latent size, S side of a feature map.
"""

import math

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from adlight.gan.networks import SIZES, Square
from adlight.settings import checked

SMALLEST = 8  # the critic halves its maps until they have at most this many pixels per side


def count_stages(image_size: int) -> tuple[int, int]:
    """Return the smallest side, 4 or 7, and the number of doublings from it to the image's side.

    Raises:
        ValueError: 30 pixels, which only the thesis's layers can generate.
    """
    if image_size not in SIZES:
        raise ValueError(f"residual blocks cannot generate image_size={image_size}: use 28 or 32")
    return SIZES[image_size]


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), with 3 x 3 convolutions.

    Args:
        inputs, outputs: number of channels; if they differ, the shortcut is a 1 x 1 convolution.
        scale: 2 doubles the sides before the second convolution, 0.5 halves them after it, 1 keeps them.
        normalize: whether each image's maps are normalized together before every ReLU (`GroupNorm` of one group).
        activated: whether the block begins with a ReLU; false for the block that receives images.
    """

    def __init__(
        self, inputs: int, outputs: int, scale: float = 1.0, normalize: bool = False, activated: bool = True
    ) -> None:
        super().__init__()
        self.scale, self.activated = scale, activated
        self.norms = nn.ModuleList(nn.GroupNorm(1, n) if normalize else nn.Identity() for n in (inputs, outputs))
        self.first, self.second = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, S, S) -> (B, outputs, scale S, scale S)."""
        y = self.first(F.relu(self.norms[0](x)) if self.activated else x)
        y = F.relu(self.norms[1](y))
        if self.scale == 2:
            return F.interpolate(self.shortcut(x), scale_factor=2) + self.second(F.interpolate(y, scale_factor=2))
        if self.scale == 1:
            return self.shortcut(x) + self.second(y)
        return self.shortcut(F.avg_pool2d(x, 2)) + F.avg_pool2d(self.second(y), 2)


class ResidualGenerator(nn.Module):
    """Generates images in [0, 1] from latents: a linear layer, blocks that double the sides, a convolution.

    Maps are normalized per image. Gulrajani normalizes them per batch, but then an image would depend on the rest of
    its batch, and the averaged weights would need batch statistics of their own.

    Args:
        image_size: side in pixels, 4 or 7 times a power of two.
        channels: 1 or 3.
        latent: Z.
        ngf: number of channels of all blocks; 128 in the paper.
    """

    @checked
    def __init__(
        self, image_size: Square = 32, channels: PositiveInt = 3, latent: PositiveInt = 128, ngf: PositiveInt = 64
    ) -> None:
        super().__init__()
        self.latent, self.channels, self.image_size = latent, channels, image_size
        self.side, stages = count_stages(image_size)
        self.project = nn.Linear(latent, ngf * self.side**2)
        self.up = nn.ModuleList(ResidualBlock(ngf, ngf, 2, normalize=True) for _ in range(stages))
        self.norm, self.last = nn.GroupNorm(1, ngf), nn.Conv2d(ngf, channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Generate images. (B, Z) -> (B, C, H, W)."""
        x = self.project(z).unflatten(1, (-1, self.side, self.side))  # (B, ngf, S, S)
        for block in self.up:
            x = block(x)
        return self.last(F.relu(self.norm(x))).sigmoid()  # (B, C, H, W)


class ResidualBackbone(nn.Module):
    """Blocks that halve the sides down to 7 or 8, two more blocks, ReLU; without normalization (per-image penalty)."""

    def __init__(self, image_size: int, channels: int, ndf: int) -> None:
        super().__init__()
        self.image_size, self.channels = image_size, channels
        count_stages(image_size)
        blocks, side = [ResidualBlock(channels, ndf, 0.5, activated=False)], image_size // 2
        while side > SMALLEST:
            blocks.append(ResidualBlock(ndf, ndf, 0.5))
            side //= 2
        self.down = nn.ModuleList([*blocks, ResidualBlock(ndf, ndf), ResidualBlock(ndf, ndf)])
        self.num_features = ndf * side**2

    def feature_maps(self, image: Tensor) -> list[Tensor]:
        """Return the maps of all blocks in order, after a ReLU. (B, C, H, W) in [0, 1] -> list of (B, ndf, S, S)."""
        maps = [image]
        for block in self.down:
            maps.append(block(maps[-1]))
        return [F.relu(x) for x in maps[1:]]

    def features(self, image: Tensor) -> Tensor:
        """Return the last map, flattened. (B, C, H, W) -> (B, F)."""
        return self.feature_maps(image)[-1].flatten(1)


class ResidualCritic(ResidualBackbone):
    """Scores how real images look; higher is more real.

    The head sees the features at every position; Gulrajani's sees their mean over all positions.

    Args:
        image_size: side in pixels, 4 or 7 times a power of two.
        channels: 1 or 3.
        ndf: number of channels of all blocks; 128 in the paper.
    """

    @checked
    def __init__(self, image_size: Square = 32, channels: PositiveInt = 3, ndf: PositiveInt = 64) -> None:
        super().__init__(image_size, channels, ndf)
        self.head = nn.Linear(self.num_features, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Score images in [0, 1]. (B, C, H, W) -> (B, 1)."""
        return self.head(self.features(image))

    def input_gradient(self, image: Tensor) -> Tensor:
        """Return the gradient of each score with respect to its image, by autograd. (B, C, H, W) -> (B, C, H, W)."""
        with torch.enable_grad():
            image = image.detach().requires_grad_()
            return torch.autograd.grad(self(image).sum(), image, create_graph=True)[0]


class ResidualEncoder(ResidualBackbone):
    """Estimates the latent whose image is nearest, by the critic's blocks with Z outputs.

    Args:
        image_size, channels, ndf: see `ResidualCritic`.
        latent, normalize_latent: see `Encoder`.
    """

    @checked
    def __init__(
        self,
        image_size: Square = 32,
        channels: PositiveInt = 3,
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
