"""Scores of an image by how badly a frozen network is mimicked on it (Salehi 2021)."""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from adlight.detection.maps import Reduction, reduce_map, smooth
from adlight.distillation.network import distillation_loss, distillation_map
from adlight.settings import PositiveShare, checked
from adlight.types import Scores

Mimic = Callable[[Tensor], tuple[list[Tensor], list[Tensor]]]  # images -> the maps to be mimicked, and the mimic's


class DistillationScorer:
    """Score an image by the loss, and its pixels by where that comes from.

    Args:
        localization: `cells`: the loss of each cell of the layers; or `gradient`: |dL/dx|, mean over channels, which is
            the original's and needs autograd.
        reduce: image score: `loss`, the original's; or `mean`, `max` or `topk` of the smoothed map.
        smoothing: sigma of the Gaussian, in pixels.
        topk: share of the pixels that `topk` averages.
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

        Nothing is reconstructed: the image itself stands in that place.
        """
        if self.localization == "gradient":
            loss, pixel = differentiate(mimic, weight, image)  # (B,), (B, H, W)
        else:
            with torch.no_grad():
                taught, cloned = mimic(image)
                direction, value = distillation_loss(taught, cloned)  # (B,) each
                loss = direction + weight * value  # (B,)
                pixel = distillation_map(taught, cloned, weight, image.shape[-2:])  # (B, H, W)
        pixel = smooth(pixel, self.smoothing)  # (B, H, W)
        score = loss if self.reduce == "loss" else reduce_map(pixel, self.reduce, self.topk)  # (B,)
        return Scores(image=score, pixel=pixel, reconstruction=image)


def differentiate(mimic: Mimic, weight: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the loss (B,) and |dL/dx| (B, H, W) of images; works under Lightning's `inference_mode`."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(image.device.type, enabled=False):
        x = image.detach().float().clone().requires_grad_()
        direction, value = distillation_loss(*mimic(x))  # (B,) each
        loss = direction + weight.clone() * value  # (B,)
        (gradient,) = torch.autograd.grad(loss.sum(), x)
    return loss.detach(), gradient.abs().mean(1)
