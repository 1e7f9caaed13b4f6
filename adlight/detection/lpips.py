"""Perceptual distance over AlexNet's features (LPIPS, Zhang 2018): a loss term and an anomaly map."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Literal

import torch
from torch import Tensor, nn

from adlight.settings import checked
from adlight.types import UserError

Layers = Literal["calibrated", "raw"]


def alexnet_path() -> Path:
    """Find where torchvision keeps AlexNet's weights on this machine, once they are fetched."""
    return Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-owt-7be5be79.pth"


class PerceptualDistance:
    """LPIPS at each pixel, frozen.

    Not an `nn.Module`: its weights stay out of the optimizer, EMA, DDP and checkpoints of the module that holds it.

    Args:
        layers: `calibrated` (the lpips package's learned weights) or `raw` (the plain mean over layers: the article's
            eq. 13, but for the package's unit-length features).

    Raises:
        ValueError: `layers` is neither.
        UserError: AlexNet's weights are missing or damaged on this machine and cannot be fetched.
    """

    @checked
    def __init__(self, layers: Layers = "calibrated") -> None:
        import lpips  # imports torchvision, which takes a second: only when the term is on

        try:
            with torch.random.fork_rng(devices=[]):  # it draws weights before it loads them: not from the run's stream
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
        """Compare images pixel by pixel. (B, C, H, W) twice, values in [0, 1] -> (B, H, W).

        Raises:
            UserError: the images are smaller than AlexNet's layers need.
        """
        if min(x.shape[-2:]) < 32:
            raise UserError(
                f"LPIPS needs images of at least 32x32 pixels, got {x.shape[-2]}x{x.shape[-1]}: turn it off "
                "(objective: lpips=0; scorer: another score)"
            )
        self.network.to(x.device)  # free after the first call
        x, y = (2 * image.expand(-1, 3, -1, -1).float() - 1 for image in (x, y))  # AlexNet was trained on colour
        return self.network(x, y)[:, 0] / self.divisor
