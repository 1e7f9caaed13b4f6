"""Generator, critic and encoder of the GAN (thesis, section 3.3.1 and figure 3-2).

28 and 30 pixels have the thesis's own layers; other sizes that are 4 or 7 times a power of two have a ladder of
stride-2 stages. Letters: Z latent size, F critic features, S side of the smallest feature map.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adlight.types import check_integer

THESIS_PADDING = {28: 1, 30: 0}  # kernel 8, stride 2 makes 30 of 12 pixels, or 28 with padding 1


def ladder(image_size: int) -> tuple[int, int]:
    """Side of the smallest feature map, and how many stride-2 stages lie between it and the image.

    Raises:
        ValueError: a size with no ladder; the text names the nearest ones that have one.
    """
    if image_size in THESIS_PADDING:
        return 4, 3
    sizes = {base * 2**k: (base, k) for base in (4, 7) for k in range(1, 8) if base * 2**k <= 512}
    if image_size not in sizes:
        known = sorted({*sizes, *THESIS_PADDING}, key=lambda size: abs(size - image_size))[:3]
        raise ValueError(
            f"the GAN has no layers for images of {image_size} pixels: set dataset.image_size to 28, 30 or 4 or 7 "
            f"times a power of two (nearest: {', '.join(map(str, sorted(known)))})"
        )
    return sizes[image_size]


def widths(base: int, stages: int) -> list[int]:
    """Channels after each critic stage: doubling from `base`, at most 8 times as many."""
    return [base * min(2**k, 8) for k in range(stages)]


class Generator(nn.Module):
    """Images in [0, 1] from latents.

    Args:
        image_size: side in pixels, see `ladder`.
        channels: 1 or 3.
        latent: Z.
        ngf: channels before the last layer.

    Raises:
        ValueError: an image size with no ladder.
    """

    def __init__(self, image_size: int = 28, channels: int = 1, latent: int = 128, ngf: int = 64) -> None:
        super().__init__()
        check_integer("generator.latent", latent, 1)
        check_integer("generator.ngf", ngf, 1)
        self.latent, self.channels, self.image_size = latent, channels, image_size
        self.side, stages = ladder(image_size)
        steps = widths(ngf, stages)[::-1]  # such as 4 ngf, 2 ngf, ngf
        self.project = nn.Linear(latent, steps[0] * self.side**2)
        if image_size in THESIS_PADDING:
            layers: list[nn.Module] = [nn.ConvTranspose2d(a, b, 5) for a, b in pairwise(steps)]
            layers.append(nn.ConvTranspose2d(ngf, channels, 8, stride=2, padding=THESIS_PADDING[image_size]))
        else:
            outputs = [*steps[1:], channels]
            layers = [nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in zip(steps, outputs, strict=True)]
        self.up = nn.ModuleList(layers)

    def forward(self, z: Tensor) -> Tensor:
        """Make images. (B, Z) -> (B, C, H, W)."""
        x = F.relu(self.project(z)).unflatten(1, (-1, self.side, self.side))  # (B, 4 ngf, S, S)
        for layer in self.up[:-1]:
            x = F.relu(layer(x))  # thesis: (B, 2 ngf, 8, 8), (B, ngf, 12, 12)
        return self.up[-1](x).sigmoid()  # (B, C, H, W)


class Trunk(nn.Module):
    """Strided convolutions with ReLU, without pooling and normalisation. (B, C, H, W) -> (B, F)."""

    def __init__(self, image_size: int, channels: int, ndf: int) -> None:
        super().__init__()
        check_integer(f"{type(self).__name__.lower()}.ndf", ndf, 1)
        self.image_size, self.channels = image_size, channels
        self.side, stages = ladder(image_size)
        steps = [channels, *widths(ndf, stages)]
        self.down = nn.ModuleList(nn.Conv2d(a, b, 5, stride=2, padding=2) for a, b in pairwise(steps))
        self.num_features = steps[-1] * self.side**2

    def maps(self, image: Tensor) -> list[Tensor]:
        """Feature maps of all layers. (B, C, H, W) in [0, 1] -> (B, D, S, S), the first layer's first."""
        found = [image]
        for layer in self.down:
            found.append(F.relu(layer(found[-1])))  # thesis: (B, ndf, 14, 14), (B, 2 ndf, 7, 7), (B, 4 ndf, 4, 4)
        return found[1:]

    def features(self, image: Tensor) -> Tensor:
        """Last feature map, flat. (B, C, H, W) -> (B, F)."""
        return self.maps(image)[-1].flatten(1)


class Critic(Trunk):
    """Scores how real images look; larger is more real.

    Args:
        image_size: side in pixels, see `ladder`.
        channels: 1 or 3.
        ndf: channels after the first layer.

    Raises:
        ValueError: an image size with no ladder.
    """

    def __init__(self, image_size: int = 28, channels: int = 1, ndf: int = 64) -> None:
        super().__init__(image_size, channels, ndf)
        self.head = nn.Linear(self.num_features, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Score images in [0, 1]. (B, C, H, W) -> (B, 1)."""
        return self.head(self.features(image))

    def input_gradient(self, image: Tensor) -> Tensor:
        """Gradient of each score with respect to its image, as a function of the weights. (B, C, H, W) -> same.

        ReLU networks are linear between their kinks, so the gradient is the head's weights brought back through
        the transposed convolutions, with the units that are off left out. Autograd's double backward finds the same
        and takes longer: it also follows the way through the units' signs, which is zero everywhere.
        """
        sizes, on = [], []
        with torch.no_grad():
            x = image
            for layer in self.down:
                sizes.append(x.shape[-1])
                x = F.relu_(layer(x))
                on.append(x > 0)  # (B, D, S, S)
        gradient = self.head.weight.view(1, *x.shape[1:])
        for layer, size, active in zip(reversed(self.down), reversed(sizes), reversed(on), strict=True):
            assert isinstance(layer, nn.Conv2d)
            lost = (size - 1) % 2  # columns that stride 2 left out at the end: 0 for an odd size, 1 for an even one
            gradient = F.conv_transpose2d(
                gradient * active, layer.weight, stride=2, padding=2, output_padding=lost
            )  # (B, D, S, S) of the layer before
        return gradient


class Encoder(Trunk):
    """The critic's trunk with Z outputs: the latent whose image should be nearest (Schlegl 2019, f-AnoGAN).

    Args:
        image_size: side in pixels, see `ladder`.
        channels: 1 or 3.
        latent: Z.
        ndf: channels after the first layer.
        on_sphere: bring every latent to norm sqrt(Z), where the prior has nearly all its mass: the generator is
            asked for nothing that it was not trained on.

    Raises:
        ValueError: an image size with no ladder.
    """

    def __init__(
        self, image_size: int = 28, channels: int = 1, latent: int = 128, ndf: int = 64, on_sphere: bool = False
    ) -> None:
        super().__init__(image_size, channels, ndf)
        check_integer("encoder.latent", latent, 1)
        self.latent, self.on_sphere = latent, on_sphere
        self.head = nn.Linear(self.num_features, latent)

    def forward(self, image: Tensor) -> Tensor:
        """Encode images in [0, 1]. (B, C, H, W) -> (B, Z)."""
        z = self.head(self.features(image))
        return F.normalize(z) * math.sqrt(self.latent) if self.on_sphere else z
