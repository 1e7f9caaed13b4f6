"""Scores of images by the differences between frozen network and cloner (Salehi 2021)."""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from adlight.detection.maps import Reduction, reduce_map, smooth
from adlight.distillation.network import distillation_loss, distillation_map
from adlight.settings import PositiveShare, checked
from adlight.types import Scores

Mimic = Callable[[Tensor], tuple[list[Tensor], list[Tensor]]]  # images -> maps of the frozen network and of the cloner


class DistillationScorer:
    """Score an image by the distillation loss, and its pixels by their contribution to it.

    Args:
        localization: pixel score: `cells`, the loss of each cell of the layers; or `gradient`, |dL/dx| averaged over
            channels, as in the original, which needs autograd.
        reduce: image score: `loss`, as in the original; or `mean`, `max` or `topk` of the smoothed map.
        smoothing: standard deviation of the Gaussian that smooths the map, in pixels; 0 disables it.
        topk: fraction of the pixels that `topk` averages.
    """

    @checked
    def __init__(
        self,
        localization: Literal["cells", "gradient"] = "cells",
        reduce: Literal["loss"] | Reduction = "loss",
        smoothing: NonNegativeFloat = 4.0,
        topk: PositiveShare = 0.01,
    ) -> None:
        self.localization, self.reduce, self.smoothing, self.topk = localization, reduce, smoothing, topk

    def __call__(self, mimic: Mimic, weight: Tensor, image: Tensor) -> Scores:
        """Score images (B, C, H, W) in [0, 1] by L_dir + weight L_val.

        Nothing is reconstructed: `reconstruction` is the image itself.
        """
        if self.localization == "gradient":
            loss, pixel = differentiate(mimic, weight, image)  # (B,), (B, H, W)
        else:
            with torch.no_grad():
                frozen, cloned = mimic(image)
                direction, value = distillation_loss(frozen, cloned)  # (B,) each
                loss = direction + weight * value  # (B,)
                pixel = distillation_map(frozen, cloned, weight, image.shape[-2:])  # (B, H, W)
        pixel = smooth(pixel, self.smoothing)  # (B, H, W)
        score = loss if self.reduce == "loss" else reduce_map(pixel, self.reduce, self.topk)  # (B,)
        return Scores(image=score, pixel=pixel, reconstruction=image)


def differentiate(mimic: Mimic, weight: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the loss (B,) and |dL/dx| (B, H, W), averaged over channels; works under Lightning's `inference_mode`."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(image.device.type, enabled=False):
        x = image.detach().float().clone().requires_grad_()
        direction, value = distillation_loss(*mimic(x))  # (B,) each
        loss = direction + weight.clone() * value  # (B,)
        (gradient,) = torch.autograd.grad(loss.sum(), x)
    return loss.detach(), gradient.abs().mean(1)
