"""The score of a baseline: how far an image is from the closest one that it can make."""

from collections.abc import Callable

import torch
from torch import Tensor

from adlight.detection.maps import MAPS, reduce_map, smooth
from adlight.types import Scores


class ResidualScorer:
    """Scores images by their distance, and pixels by their difference, to what a network makes of them.

    Args:
        score: what the map shows: `mse`, `l1`, `ssim` or `msgms`.
        reduce: `distance`, as the network itself measures it; `mean` of the map as it is; `max` or `topk` of the
            smoothed map.
        smoothing: sigma of the Gaussian over the map, in pixels; 0 = none.
        topk: share of the pixels that `topk` averages.

    Raises:
        ValueError: an unknown name, or a number out of range.
    """

    def __init__(
        self, score: str = "mse", reduce: str = "distance", smoothing: float = 1.0, topk: float = 0.01
    ) -> None:
        if score not in MAPS:
            raise ValueError(f"score {score!r} is unknown: {', '.join(MAPS)}")
        if reduce not in ("distance", "mean", "max", "topk"):
            raise ValueError(f"reduce {reduce!r} is unknown: distance, mean, max or topk")
        if smoothing < 0 or not 0 < topk <= 1:
            raise ValueError(f"smoothing {smoothing} >= 0 and 0 < topk {topk} <= 1 are needed")
        self.map, self.reduce, self.smoothing, self.topk = MAPS[score], reduce, smoothing, topk

    @torch.no_grad()
    def __call__(self, network: Callable[[Tensor], tuple[Tensor, Tensor]], image: Tensor) -> Scores:
        """Score images (B, C, H, W) in [0, 1] with a network: (B, C, H, W) -> reconstruction, distance (B,)."""
        with torch.autocast(image.device.type, enabled=False):  # in bf16 many scores would be equal
            reconstruction, distance = network(image)
            error = self.map(image, reconstruction)  # (B, H, W)
            pixel = smooth(error, self.smoothing)  # (B, H, W)
            if self.reduce != "distance":
                distance = reduce_map(error if self.reduce == "mean" else pixel, self.reduce, self.topk)  # (B,)
        return Scores(image=distance, pixel=pixel, reconstruction=reconstruction)
