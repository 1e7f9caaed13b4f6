"""Detector by distillation: a frozen network, a small one that mimics it, and the score of where it fails."""

from collections.abc import Callable
from typing import Any

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from adlight.detection.detector import AnomalyDetector
from adlight.distillation.network import Cloner
from adlight.distillation.scorer import DistillationScorer
from adlight.features.backbones import Backbone
from adlight.settings import Built, checked
from adlight.types import Batch, Scores

PROBE = 64  # side in pixels of the image that probes the shapes of the layers


class MKDDetector(AnomalyDetector):
    """Detect images on which a cloner trained on normal images fails to mimic a frozen network (Salehi 2021).

    Args:
        backbone: the frozen network with the layers to mimic, from fine to coarse.
        network: makes the cloner from the `shapes` of these layers.
        scorer: scores images by the differences between frozen network and cloner.
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
        """The reason why the scorer cannot be exported: a graph cannot differentiate."""
        if self.scorer.localization != "gradient":
            return None
        return "localization=gradient differentiates; localization=cells can be exported"

    def get_extra_state(self) -> dict[str, Any]:
        """Return the thresholds and the backbone's fingerprint, which is stored instead of its weights."""
        return {**super().get_extra_state(), "backbone": self.backbone.fingerprint}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the thresholds; reject a checkpoint made with another backbone."""
        rest = dict(state)
        self.backbone.check_fingerprint(rest.pop("backbone", None))
        super().set_extra_state(rest)

    def mimic(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the maps of frozen network and cloner. (B, C, H, W) in [0, 1] -> lists of (B, C_l, h_l, w_l)."""
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
