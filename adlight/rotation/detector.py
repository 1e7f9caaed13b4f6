"""Detector by rotation: the surprise at which way up an image is, added to a score of frozen features."""

from collections.abc import Callable

import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.nn import functional as F

from adlight.detection.detector import AnomalyDetector
from adlight.detection.inference import full_precision
from adlight.features.backbones import Backbone
from adlight.features.cells import extract_features, standardize
from adlight.memory.dn2 import DeepNearestNeighbours
from adlight.rotation.network import RotationNetwork
from adlight.settings import Built, checked
from adlight.types import Batch, Scores

EPSILON = 0.01  # losses far below it count alike: the network is sure of the image


class RotationDetector(AnomalyDetector):
    """Score images by DN2 and by the losses L of a network that tells rotations of normal images apart.

    The image score is that of DN2 plus weight * log(L + 0.01), averaged over four turns: losses of normal images are
    near 0, and those of others spread over orders of magnitude. The map is the distance of each cell
    to the mean cell of the nearest images.

    Args:
        backbone: computes the features; frozen.
        neighbours: makes DN2 from the number of channels.
        network: tells rotations apart.
        weight: of its log losses.
    """

    takes_padding = False
    mean: Tensor
    std: Tensor

    @checked
    def __init__(
        self,
        backbone: Built[Backbone],
        neighbours: Callable[..., DeepNearestNeighbours],
        network: Built[RotationNetwork],
        weight: NonNegativeFloat = 0.2,
    ) -> None:
        super().__init__()
        self.backbone, self.network, self.weight = backbone, network, weight
        self.neighbours = neighbours(channels=backbone.channels)
        self.register_buffer("mean", torch.zeros(backbone.channels))
        self.register_buffer("std", torch.ones(backbone.channels))

    def score(self, batch: Batch) -> Scores:
        """Score a batch; nothing is reconstructed."""
        image = batch["image"].float()  # (B, 1 or 3, H, W)
        with full_precision(image.device):
            cells = standardize(extract_features(self.backbone, batch), self.mean, self.std)  # (B, h, w, C)
            distance = self.neighbours.residual(cells).square().mean(3).sqrt()  # (B, h, w)
            surprise = (self.network.loss(image) + EPSILON).log().mean(1)  # (B,)
            score = self.neighbours.image_score(cells, distance) + self.weight * surprise
        pixel = F.interpolate(distance[:, None], image.shape[-2:], mode="bilinear", align_corners=False)[
            :, 0
        ]  # (B, H, W)
        return Scores(image=score, pixel=pixel, reconstruction=batch["image"])
