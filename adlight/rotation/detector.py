"""Detection by rotation: the loss in predicting an image's rotation, added to a score of frozen features."""

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

EPSILON = 0.01  # added to losses before the logarithm: the network is sure of images with much smaller losses


class RotationDetector(AnomalyDetector):
    """Scores images by DN2 and by the losses L of a network that classifies rotations of normal images.

    The image score is DN2's plus weight * log(L + 0.01), averaged over four rotations: losses of normal images are near
    0, and losses of anomalous images spread over orders of magnitude. The map is the distance of each cell to the mean
    cell of the nearest images.

    Args:
        backbone: computes the features; frozen.
        neighbours: constructor of DN2, which takes the number of channels.
        network: classifies rotations.
        weight: weight of the logarithm.
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
        pixel = F.interpolate(distance[:, None], image.shape[-2:], mode="bilinear", align_corners=False)  # (B, 1, H, W)
        return Scores(image=score, pixel=pixel[:, 0], reconstruction=batch["image"])
