"""The article's reconstruction objective: structure, pixels and perception (eq. 4 to 13)."""

from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from adlight.detection.ssim import ssim_map
from adlight.types import UserError


def ssim_loss(x: Tensor, y: Tensor) -> Tensor:
    """1 - SSIM with a sliding Gaussian window (Wang 2004; eq. 5 with local means). (B, C, H, W) twice -> scalar."""
    return 1 - ssim_map(x, y).mean()


def l1_loss(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference (eq. 12). (B, C, H, W) twice -> scalar."""
    return (x - y).abs().mean()


class PerceptualDistance:
    """LPIPS over AlexNet's features (Zhang 2018), frozen; on purpose no `nn.Module`.

    So its weights stay out of the optimiser, EMA, DDP and checkpoints of the network that is trained with them.

    Args:
        layers: `calibrated` (the lpips package's learned weights) or `raw` (the plain mean of the layers: the
            article's eq. 13, but for the package's unit-length features).

    Raises:
        UserError: AlexNet's weights are not on this machine, or damaged, and cannot be fetched.
    """

    def __init__(self, layers: str = "calibrated") -> None:
        if layers not in ("calibrated", "raw"):
            raise ValueError(f"lpips_layers {layers!r} is unknown: calibrated or raw")
        import lpips  # it imports torchvision, which takes a second: only when the term is on

        try:
            self.network: nn.Module = lpips.LPIPS(net="alex", lpips=layers == "calibrated", spatial=True, verbose=False)
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:  # of urllib, and of damaged files
            folder, reason = Path(torch.hub.get_dir()) / "checkpoints", " ".join(str(error).split())
            raise UserError(
                f"LPIPS needs AlexNet's weights and they cannot be fetched or read ({reason}): put "
                f"alexnet-owt-7be5be79.pth (torchvision's AlexNet_Weights.IMAGENET1K_V1) into {folder}, or turn the "
                "term off with model.objective.lpips=0"
            ) from error
        self.network.eval().requires_grad_(False)
        self.divisor = 1 if layers == "calibrated" else len(self.network.chns)  # the package sums the layers

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance at each pixel. (B, C, H, W) twice, values in [0, 1] -> (B, H, W).

        Raises:
            UserError: the images are smaller than AlexNet's layers need.
        """
        if min(x.shape[-2:]) < 32:
            raise UserError(
                f"LPIPS needs images of 32 pixels a side or more, not {x.shape[-2]}x{x.shape[-1]}: "
                "model.objective.lpips=0 and another model.scorer.score than lpips do without"
            )
        self.network.to(x.device)  # free after the first call
        x, y = (2 * image.expand(-1, 3, -1, -1).float() - 1 for image in (x, y))  # AlexNet has seen colour
        return self.network(x, y)[:, 0] / self.divisor


class ReconstructionLoss:
    """loss = ssim (1 - SSIM) + l1 |x - y| + lpips LPIPS (eq. 4); a weight of 0 builds nothing.

    Args:
        ssim, l1, lpips: the weights gamma_1, gamma_2, gamma_3, not stated in the article; 1 each here.
        lpips_layers: `calibrated` or `raw`, see `PerceptualDistance`.

    Raises:
        ValueError: negative weights, or all of them 0.
        UserError: LPIPS is on and AlexNet's weights are missing.
    """

    def __init__(
        self, ssim: float = 1.0, l1: float = 1.0, lpips: float = 1.0, lpips_layers: str = "calibrated"
    ) -> None:
        weights = {"ssim": ssim, "l1": l1, "lpips": lpips}
        if min(weights.values()) < 0 or not any(weights.values()):
            raise ValueError(f"objective weights {weights} must be >= 0 and not all 0")
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        self.perceptual = PerceptualDistance(lpips_layers) if lpips > 0 else None

    def __call__(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Terms and their weighted sum. x, y: (B, C, H, W) in [0, 1] -> scalars `loss` and one a term that is on."""
        x, y = x.float(), y.float()  # sums over an image in bf16 would lose the small differences
        terms: dict[str, Tensor] = {}
        if "ssim" in self.weights:
            terms["ssim"] = ssim_loss(x, y)
        if "l1" in self.weights:
            terms["l1"] = l1_loss(x, y)
        if self.perceptual is not None:
            terms["lpips"] = self.perceptual(x, y).mean()
        terms["loss"] = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return terms
