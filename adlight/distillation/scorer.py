"""Detection by distillation: images are scored by the differences of cloner and frozen network (Salehi 2021)."""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from adlight.detection.detector import AnomalyDetector
from adlight.detection.maps import Reduction, reduce_map, smooth
from adlight.distillation.network import Cloner, distillation_loss, distillation_map
from adlight.features.backbones import Backbone
from adlight.settings import Built, PositiveShare, checked
from adlight.types import Batch, Scores

PROBE = 64  # side, in pixels, of the image that determines the shapes of the layers
Mimic = Callable[[Tensor], tuple[list[Tensor], list[Tensor]]]  # images -> maps of the frozen network and of the cloner


class DistillationScorer:
    """Scores images by the distillation loss, and pixels by their contributions to it.

    Args:
        localization: pixel score: `cells`, the loss of each cell of the layers, or `gradient`, |dL/dx| averaged over
            channels, as in the original, which needs autograd.
        reduce: image score: `loss`, as in the original, or `mean`, `max` or `topk` of the smoothed map.
        smoothing: sigma of the Gaussian over the map, in pixels; 0 for none.
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
        """Score images (B, C, H, W) in [0, 1] by L_dir + weight L_val; nothing is reconstructed."""
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


class MKDDetector(AnomalyDetector):
    """Detects images on which a cloner trained on normal images fails to mimic a frozen network (Salehi 2021).

    Args:
        backbone: the frozen network, with the layers to mimic from fine to coarse.
        network: constructor of the cloner, which takes the `shapes` of these layers.
        scorer: scores images by the differences of cloner and frozen network.
        value: weight of L_val, see `distillation_loss`; None takes L_dir / L_val of the first training batch, so that
            both terms start equal, as in the paper. The authors' code uses 0.5 for VGG-16 and MVTec AD.
    """

    takes_padding = False
    first_ratio: Tensor

    @checked
    def __init__(
        self,
        backbone: Built[Backbone],
        network: Callable[..., Cloner],
        scorer: Built[DistillationScorer],
        value: NonNegativeFloat | None = None,
    ) -> None:
        super().__init__()
        with torch.no_grad():
            maps = backbone.maps(torch.zeros(1, 3, PROBE, PROBE))
        self.network = network(shapes=[(layer.shape[1], PROBE // layer.shape[2]) for layer in maps])
        self.backbone, self.scorer, self.value = backbone, scorer, value
        self.register_buffer("first_ratio", torch.tensor(torch.nan))  # L_dir / L_val of the first batch

    @property
    def weight(self) -> Tensor:
        """The weight of L_val."""
        return self.first_ratio if self.value is None else torch.full_like(self.first_ratio, self.value)

    @property
    def export_blocker(self) -> str | None:
        """The reason why the scorer cannot be exported, if any: a graph cannot differentiate."""
        if self.scorer.localization != "gradient":
            return None
        return "localization=gradient differentiates; localization=cells can be exported"

    def mimic(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the maps of the frozen network and the cloner. (B, C, H, W) in [0, 1] -> (B, C_l, h_l, w_l) each."""
        self.backbone.to(image.device)
        pixels = self.backbone.prepare(image.float(), image.shape[-2:])  # (B, 3, H', W')
        with torch.autocast(image.device.type, enabled=False):
            frozen = self.backbone.maps(pixels)
        # pooling may drop the last row and column of an odd grid, which the cloner's convolutions keep
        cloned = [b[..., : a.shape[2], : a.shape[3]] for a, b in zip(frozen, self.network(pixels), strict=True)]
        return frozen, cloned

    def score(self, batch: Batch) -> Scores:
        """Score a batch."""
        return self.scorer(self.mimic, self.weight, batch["image"])
