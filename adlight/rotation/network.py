"""A network that predicts by how many quarter turns an image was rotated (Gidaris 2018, RotNet)."""

import torch
from pydantic import PositiveInt
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from adlight.features.weights import build_network, fold_batch_norms
from adlight.settings import PathName, Text, checked

TURNS = 4


class RotationNetwork(nn.Module):
    """Classifies images by their rotation; the whole network is trained.

    A pretrained network needs only a few epochs. Its batch norms are folded, or keep their statistics, so that results
    do not depend on other images.

    Args:
        name: timm's name of the network.
        weights: `pretrained`, `random` or a file, see `build_network`.
        side: side, in pixels, of the squares to which images are resized.

    Raises:
        UserError: the network or its weights do not exist.
    """

    mean: Tensor
    std: Tensor

    @checked
    def __init__(self, name: Text, weights: PathName = "pretrained", side: PositiveInt = 64) -> None:
        super().__init__()
        probe = torch.rand(1, 3, side, side, generator=Generator().manual_seed(0))
        body = fold_batch_norms(build_network(name, weights), probe)
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(body.pretrained_cfg[key]).view(3, 1, 1), persistent=False)
        with torch.no_grad():
            features = body(probe).shape[1]
        self.body = body.requires_grad_(True).to(memory_format=torch.channels_last)
        self.head, self.name, self.side = nn.Linear(features, TURNS), name, side
        nn.init.zeros_(self.head.weight)  # before training, all rotations are equally likely
        nn.init.zeros_(self.head.bias)

    def train(self, mode: bool = True) -> "RotationNetwork":
        """Set the mode, but keep the body, with its batch norms, in eval mode."""
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Compute the logits of 0 to 3 quarter turns. (B, 1 or 3, side, side) in [0, 1] -> (B, 4)."""
        pixels = (image.expand(-1, 3, -1, -1) - self.mean) / self.std  # (B, 3, side, side)
        return self.head(self.body(pixels.contiguous(memory_format=torch.channels_last)))

    def loss(self, image: Tensor) -> Tensor:
        """Rotate images by 0 to 3 quarter turns, and compute -log p of each. (B, 1 or 3, H, W) in [0, 1] -> (B, 4).

        Small for images that resemble the training images (Golan and El-Yaniv 2018; Hendrycks 2019).
        """
        if image.shape[-2:] != (self.side, self.side):
            size = [self.side, self.side]
            image = F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
        turned = torch.cat([torch.rot90(image, turn, (2, 3)) for turn in range(TURNS)])  # (4 B, 1 or 3, side, side)
        log_p = self(turned).float().log_softmax(1).unflatten(0, (TURNS, -1))  # (4, B, 4)
        return -log_p.diagonal(dim1=0, dim2=2)  # (B, 4)
