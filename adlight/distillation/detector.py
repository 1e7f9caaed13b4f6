"""The detector: a frozen network, the small one that mimics it, and the score of where it fails (Salehi 2021)."""

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

PROBE = 64  # pixels a side, of what the layers' shapes are found by


class MKDDetector(AnomalyDetector):
    """Images on which a network of normal images fails to mimic a frozen one are anomalous.

    Args:
        backbone: the frozen network and the layers that are mimicked, from fine to coarse.
        network: makes the cloner for the layers' `shapes`.
        scorer: scores images by what is mimicked badly.
        value: weight of L_val, see `distillation_loss`; None: L_dir / L_val of the first batch of the training, so that
            both terms begin alike, as the paper has it. The authors' code has 0.5 for VGG-16 and MVTec AD.
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
        self.network = network(shapes=[(one.shape[1], PROBE // one.shape[2]) for one in maps])
        self.backbone, self.scorer, self.value = backbone, scorer, value
        self.register_buffer("first_ratio", torch.tensor(torch.nan))  # L_dir / L_val of the first batch

    @property
    def weight(self) -> Tensor:
        """The weight of L_val."""
        return self.first_ratio if self.value is None else torch.full_like(self.first_ratio, self.value)

    @property
    def export_blocker(self) -> str | None:
        """Graphs hold no gradient."""
        if self.scorer.localization != "gradient":
            return None
        return "localization=gradient differentiates; localization=cells can be exported"

    def get_extra_state(self) -> dict[str, Any]:
        """Give the thresholds and, in place of its weights, the backbone's fingerprint."""
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

    def score(self, batch: Batch) -> Scores:
        """Score a batch."""
        return self.scorer(self.mimic, self.weight, batch["image"])
