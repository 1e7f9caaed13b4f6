"""Perceptual distance on AlexNet's features (LPIPS, Zhang 2018): a loss term and an anomaly map."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Literal

import torch
from torch import Tensor, nn

from adlight.settings import checked
from adlight.types import UserError

Layers = Literal["calibrated", "raw"]


def alexnet_path() -> Path:
    """Return the file in which torchvision stores AlexNet's weights once they are downloaded."""
    return Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-owt-7be5be79.pth"


class PerceptualDistance:
    """LPIPS per pixel, frozen.

    Not an `nn.Module`, so that its weights stay out of the optimizer, EMA, DDP and checkpoints of its owner.

    Args:
        layers: `calibrated` uses the learned weights of the lpips package; `raw` is the plain mean over layers: the
            article's eq. 13, except that the package normalizes features to unit length.

    Raises:
        ValueError: `layers` is neither.
        UserError: AlexNet's weights are missing or damaged and cannot be downloaded.
    """

    @checked
    def __init__(self, layers: Layers = "calibrated") -> None:
        import lpips  # imports torchvision, which takes a second

        try:
            with torch.random.fork_rng(devices=[]):  # it draws weights before loading them: not from the run's stream
                self.network: nn.Module = lpips.LPIPS(
                    net="alex", lpips=layers == "calibrated", spatial=True, verbose=False
                )
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:  # from urllib, and from damaged files
            path, reason = alexnet_path(), " ".join(str(error).split())
            raise UserError(
                f"LPIPS needs AlexNet's weights, which cannot be fetched or read ({reason}): put {path.name} "
                f"(torchvision's AlexNet_Weights.IMAGENET1K_V1) into {path.parent}, or turn LPIPS off (objective: "
                "lpips=0; scorer: another score)"
            ) from error
        self.network.eval().requires_grad_(False)
        self.divisor = 1 if layers == "calibrated" else len(self.network.chns)  # the package sums over layers

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Compare two batches of images (B, C, H, W) with values in [0, 1]. -> (B, H, W).

        Raises:
            UserError: the images are too small for AlexNet's layers.
        """
        if min(x.shape[-2:]) < 32:
            raise UserError(
                f"LPIPS needs images of at least 32x32 pixels, got {x.shape[-2]}x{x.shape[-1]}: turn it off "
                "(objective: lpips=0; scorer: another score)"
            )
        self.network.to(x.device)  # costs nothing after the first call
        x, y = (2 * image.expand(-1, 3, -1, -1).float() - 1 for image in (x, y))  # AlexNet expects colour images
        return self.network(x, y)[:, 0] / self.divisor
