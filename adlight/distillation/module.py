"""Multiresolution knowledge distillation (Salehi 2021, MKD)."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.optim import Optimizer

from adlight.detection.maps import Reduction, reduce_map, smooth
from adlight.detection.module import AnomalyModule
from adlight.detection.optimization import log_terms, schedule_by_step, stop_if_diverged
from adlight.distillation.network import Cloner, distillation_loss, distillation_map
from adlight.features.backbones import Backbone
from adlight.gan.optimization import average_over_processes
from adlight.settings import Built, PositiveShare, Share, checked
from adlight.types import Batch, Scores

PROBE = 64  # pixels a side, of what the layers' shapes are found by


class MKDModule(AnomalyModule):
    """Train a cloner to give a frozen network's layers, in direction and value; where it fails, an image is anomalous.

    What differs from the original: the frozen network is any `Backbone` (theirs is VGG-16), the cloner has group norms,
    the learning rate warms up and falls, and the map compares cell by cell by default (theirs is `gradient`, with a
    morphological opening after the threshold).

    Args:
        backbone: the frozen network and the layers that are mimicked, from fine to coarse.
        network: makes the cloner for the layers' `shapes`.
        optimizer: makes the optimizer from parameters.
        value: weight of L_val, see `distillation_loss`; None: L_dir / L_val of the first batch, so that both terms
            begin alike, as the paper has it. The authors' code has 0.5 for VGG-16 and MVTec AD.
        warmup: share of the steps in which the learning rate rises; a half cosine to 0 follows.
        localization: `cells`, or `gradient`: |dL/dx|, mean over channels, which needs autograd.
        reduce: image score: `loss`, the original's; or `mean`, `max` or `topk` of the smoothed map.
        smoothing: sigma of the Gaussian, in pixels.
        topk: share of the pixels that `topk` averages.
    """

    takes_padding = False
    first_ratio: Tensor

    @checked
    def __init__(
        self,
        backbone: Built[Backbone],
        network: Callable[..., Cloner],
        optimizer: Callable[..., Optimizer],
        value: NonNegativeFloat | None = None,
        warmup: Share = 0.05,
        localization: Literal["cells", "gradient"] = "cells",
        reduce: Literal["loss"] | Reduction = "loss",
        smoothing: NonNegativeFloat = 4.0,
        topk: PositiveShare = 0.01,
    ) -> None:
        super().__init__()
        with torch.no_grad():
            maps = backbone.maps(torch.zeros(1, 3, PROBE, PROBE))
        self.network = network(shapes=[(one.shape[1], PROBE // one.shape[2]) for one in maps])
        self.backbone, self.optimizer, self.value, self.warmup = backbone, optimizer, value, warmup
        self.localization, self.reduce, self.smoothing, self.topk = localization, reduce, smoothing, topk
        self.register_buffer("first_ratio", torch.tensor(torch.nan))  # L_dir / L_val of the first batch

    @property
    def weight(self) -> Tensor:
        """The weight of L_val."""
        return self.first_ratio if self.value is None else torch.full_like(self.first_ratio, self.value)

    def describe(self) -> list[str]:
        """Name the frozen network and its layers."""
        return [f"distilled: {self.backbone.name} ({', '.join(self.backbone.layers)})"]

    def get_extra_state(self) -> dict[str, Any]:
        """Give the thresholds and, in the place of its weights, the backbone's fingerprint."""
        return {**super().get_extra_state(), "backbone": self.backbone.fingerprint}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the thresholds; refuse a checkpoint of another backbone."""
        rest = dict(state)
        self.backbone.check_fingerprint(rest.pop("backbone", None))
        super().set_extra_state(rest)

    def mimic(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Give the frozen network's maps and the cloner's. (B, C, H, W) in [0, 1] -> (B, C_l, h_l, w_l), lists."""
        self.backbone.to(image.device)
        pixels = self.backbone.prepare(image.float(), image.shape[-2:])  # (B, 3, H', W')
        with torch.autocast(image.device.type, enabled=False):
            taught = self.backbone.maps(pixels)
        cloned = [b[..., : a.shape[2], : a.shape[3]] for a, b in zip(taught, self.network(pixels), strict=True)]
        return taught, cloned  # pooling may leave out an odd grid's last row, which convolutions keep

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compare the maps."""
        direction, value = (one.mean() for one in distillation_loss(*self.mimic(batch["image"])))
        if self.first_ratio.isnan():
            (ratio,) = average_over_processes([(direction / value).detach()])
            self.first_ratio.copy_(ratio)
        terms = {"direction": direction, "value": self.weight * value}
        terms["loss"] = terms["direction"] + terms["value"]
        log_terms(self, terms, len(batch["image"]))
        return terms["loss"]

    def configure_optimizers(self) -> Any:
        """Warm up, then half a cosine, by step."""
        return schedule_by_step(self, self.optimizer(self.network.parameters()), self.warmup)

    def on_train_epoch_end(self) -> None:
        """Stop once the loss is not finite; the checkpoints of earlier epochs are kept."""
        stop_if_diverged(self)

    def score(self, batch: Batch) -> Scores:
        """Score a batch; nothing is reconstructed, so the image itself stands in its place."""
        image = batch["image"]  # (B, C, H, W)
        if self.localization == "gradient":
            loss, pixel = self.differentiate(image)  # (B,), (B, H, W)
        else:
            with torch.no_grad():
                taught, cloned = self.mimic(image)
                direction, value = distillation_loss(taught, cloned)  # (B,) each
                pixel = distillation_map(taught, cloned, self.weight, image.shape[-2:])  # (B, H, W)
                loss = direction + self.weight * value  # (B,)
        pixel = smooth(pixel, self.smoothing)  # (B, H, W)
        score = loss if self.reduce == "loss" else reduce_map(pixel, self.reduce, self.topk)  # (B,)
        return Scores(image=score, pixel=pixel, reconstruction=image)

    def differentiate(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the loss and |dL/dx| (B, H, W) of images; works under Lightning's `inference_mode`."""
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(image.device.type, enabled=False):
            x = image.detach().float().clone().requires_grad_()
            direction, value = distillation_loss(*self.mimic(x))  # (B,) each
            loss = direction + self.weight * value  # (B,)
            (gradient,) = torch.autograd.grad(loss.sum(), x)
        return loss.detach(), gradient.abs().mean(1)
