"""Anomaly maps from images and their reconstructions, and image scores from maps."""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.nn import functional as F

from adlight.data.frames import group_by_size
from adlight.detection.similarity import PerceptualDistance, gaussian_blur, ssim_map
from adlight.settings import PositiveShare, checked
from adlight.types import UserError


def mse_map(x: Tensor, y: Tensor) -> Tensor:
    """Compute the squared error, averaged over channels (article eq. 1). Two (B, C, H, W) -> (B, H, W)."""
    return (x - y).square().mean(1)


def l1_map(x: Tensor, y: Tensor) -> Tensor:
    """Compute the absolute error, averaged over channels. Two (B, C, H, W) -> (B, H, W)."""
    return (x - y).abs().mean(1)


def ssim_distance_map(x: Tensor, y: Tensor) -> Tensor:
    """Compute 1 - SSIM (Wang 2004), averaged over channels. Two (B, C, H, W) -> (B, H, W)."""
    return 1 - ssim_map(x, y).mean(1)


def msgms_map(x: Tensor, y: Tensor, scales: int = 4, c: float = 0.0026) -> Tensor:
    """Compute 1 - multi-scale gradient similarity (Zavrtanik 2021, RIAD eq. 4 to 7). Two (B, C, H, W) -> (B, H, W).

    1 - GMS with Prewitt filters at each of `scales` successively halved sizes, interpolated to full size and averaged.
    Sizes below 8 pixels are left out.
    """
    size = x.shape[-2:]
    total = x.new_zeros(x.shape[0], *size)
    count = 0
    for _ in range(scales):
        a, b = gradient_magnitude(x), gradient_magnitude(y)  # (B, H', W')
        similarity = (2 * a * b + c) / (a.square() + b.square() + c)
        scale_map = F.interpolate((1 - similarity)[:, None], size, mode="bilinear", align_corners=False)
        total = total + scale_map[:, 0]
        count += 1
        if min(x.shape[-2:]) < 16:
            break
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return total / count


def gradient_magnitude(x: Tensor) -> Tensor:
    """Compute the Prewitt gradient magnitude of the channel mean. (B, C, H, W) -> (B, H, W)."""
    grey = F.pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    prewitt = x.new_tensor([[1.0, 0.0, -1.0]]).expand(3, 3) / 3
    kernels = torch.stack([prewitt, prewitt.T])[:, None]  # (2, 1, 3, 3)
    return F.conv2d(grey, kernels).square().sum(1).sqrt()


MAPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": mse_map,
    "l1": l1_map,
    "ssim": ssim_distance_map,
    "msgms": msgms_map,
}


def smooth(pixel: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian of `sigma` pixels, reflected at the borders; 0 for no blur. (B, H, W) -> (B, H, W)."""
    if sigma == 0:
        return pixel
    if sigma > max(pixel.shape[-2:]):
        size = " x ".join(map(str, pixel.shape[-2:]))
        raise UserError(f"smoothing: sigma {sigma:g} exceeds the size of the map, {size}: lower it")
    radius = min(int(4 * sigma + 0.5), min(pixel.shape[-2:]) - 1)
    return gaussian_blur(pixel, sigma, radius)


def reduce_map(pixel: Tensor, how: str, topk: float = 0.01, content: Tensor | None = None) -> Tensor:
    """Reduce each map to its `mean`, its `max`, or the mean of its highest values (`topk`). (B, H, W) -> (B,).

    `topk` is the fraction of the values that are averaged; only values in `content` (B, H, W) bool count.
    """
    flat = pixel.flatten(1)
    if content is not None:
        inside = content.flatten(1)  # (B, N)
        count = inside.sum(1)  # (B,)
        kept = {"mean": count, "max": torch.ones_like(count)}.get(how, (topk * count).round().long().clamp(min=1))
        descending = flat.masked_fill(~inside, -torch.inf).sort(1, descending=True).values  # (B, N)
        selected = torch.arange(flat.shape[1], device=flat.device) < kept[:, None]  # (B, N)
        return descending.where(selected, 0).sum(1) / kept
    if how == "topk":
        return flat.topk(max(1, round(topk * flat.shape[1])), dim=1).values.mean(1)
    return flat.amax(1) if how == "max" else flat.mean(1)


def hide_outside(reconstruction: Tensor, image: Tensor, content: Tensor | None) -> Tensor:
    """Replace the reconstruction outside `content` (B, H, W) by the image, which leaves no error or gradient there."""
    return reconstruction if content is None else reconstruction.where(content[:, None], image)


Score = Literal["mse", "l1", "ssim", "msgms", "lpips"]  # the keys of MAPS, and LPIPS
Reduction = Literal["mean", "max", "topk"]


class ReconstructionError:
    """Scores images by comparing them with their reconstructions: error map -> smoothed anomaly map -> image score.

    Args:
        score: error of a pixel: `mse` (article eq. 1), `l1`, `ssim`, `msgms` or `lpips`.
        reduce: image score: `mean` of the unsmoothed error (also eq. 1; a blur reflected at the borders would change
            it), or `max` or `topk` of the smoothed map.
        smoothing: sigma of the Gaussian, in pixels; 0 for none.
        topk: fraction of the pixels that `topk` averages.
        error: computes an error map (B, H, W) from two images, instead of `score`.

    Raises:
        UserError: AlexNet's weights, which `lpips` needs, are missing.
    """

    @checked
    def __init__(
        self,
        score: Score = "mse",
        reduce: Reduction = "mean",
        smoothing: NonNegativeFloat = 4.0,
        topk: PositiveShare = 0.01,
        error: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.error = error or (PerceptualDistance() if score == "lpips" else MAPS[score])
        self.reduce, self.smoothing, self.topk = reduce, smoothing, topk

    def __call__(
        self, image: Tensor, reconstruction: Tensor, size: Tensor | None = None, content: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compare images (B, C, H, W) in [0, 1] with their reconstructions. -> scores (B,) and anomaly maps (B, H, W).

        Padding beyond the images' `size` (B, 2) and pixels outside `content`, the region of interest (B, H, W) bool,
        have no error, and maps are 0 there.
        """
        if size is not None:
            score, pixel = image.new_zeros(len(image)), torch.zeros_like(image[:, 0])
            for rows, h, w in group_by_size(size):
                crops = image[rows, :, :h, :w].float(), reconstruction[rows, :, :h, :w].float()
                score[rows], pixel[rows, :h, :w] = self(*crops)
            return score, pixel
        with torch.autocast(image.device.type, enabled=False):  # in bf16, many scores would tie
            reconstruction = hide_outside(reconstruction, image, content)
            error = self.error(image, reconstruction)  # (B, H, W)
            pixel = smooth(error, self.smoothing)  # (B, H, W)
            score = reduce_map(error if self.reduce == "mean" else pixel, self.reduce, self.topk, content)  # (B,)
        return score, pixel if content is None else pixel.where(content, 0)
