"""The article's reconstruction objective: structural, pixel-wise and perceptual loss (eq. 4 to 13)."""

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from adlight.data.frames import group_by_size
from adlight.detection.maps import hide_outside
from adlight.detection.similarity import Layers, PerceptualDistance, ssim_map
from adlight.settings import checked


def ssim_loss(x: Tensor, y: Tensor) -> Tensor:
    """Average 1 - SSIM with a sliding Gaussian window (eq. 5, with local means). (B, C, H, W) twice -> scalar."""
    return 1 - ssim_map(x, y).mean()


def l1_loss(x: Tensor, y: Tensor) -> Tensor:
    """Average the absolute difference (eq. 12). (B, C, H, W) twice -> scalar."""
    return (x - y).abs().mean()


class ReconstructionLoss:
    """loss = ssim (1 - SSIM) + l1 |x - y| + lpips LPIPS (eq. 4); terms of weight 0 are not computed.

    Args:
        ssim, l1, lpips: weights gamma_1, gamma_2, gamma_3, not all 0; the article does not state them.
        lpips_layers: `calibrated` or `raw`, see `PerceptualDistance`.

    Raises:
        UserError: `lpips` is not 0, and AlexNet's weights are missing.
    """

    @checked
    def __init__(
        self,
        ssim: NonNegativeFloat = 1.0,
        l1: NonNegativeFloat = 1.0,
        lpips: NonNegativeFloat = 1.0,
        lpips_layers: Layers = "calibrated",
    ) -> None:
        weights = {"ssim": ssim, "l1": l1, "lpips": lpips}
        if not any(weights.values()):
            raise ValueError(f"all weights are 0, but at least one must be positive: {weights}")
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        self.perceptual = PerceptualDistance(lpips_layers) if lpips > 0 else None

    def __call__(
        self, x: Tensor, y: Tensor, size: Tensor | None = None, content: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compare images (B, C, H, W) in [0, 1] with their reconstructions. -> scalar terms by name, and `loss`.

        Padding beyond the images' `size` (B, 2) and pixels outside `content`, the region of interest (B, H, W) bool,
        contribute nothing.
        """
        y = hide_outside(y, x.to(y.dtype), content)
        if size is not None:  # images have equal weight, regardless of their size
            parts = [(len(i) / len(x), self(x[i, :, :h, :w], y[i, :, :h, :w])) for i, h, w in group_by_size(size)]
            names = parts[0][1]
            return {name: torch.stack([share * terms[name] for share, terms in parts]).sum() for name in names}
        x, y = x.float(), y.float()  # in bf16, sums over an image would lose small differences
        terms: dict[str, Tensor] = {}
        if "ssim" in self.weights:
            terms["ssim"] = ssim_loss(x, y)
        if "l1" in self.weights:
            terms["l1"] = l1_loss(x, y)
        if self.perceptual is not None:
            terms["lpips"] = self.perceptual(x, y).mean()
        terms["loss"] = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return terms
