"""The multi-mask score of the article: reconstruct what each view hides, average, compare (eq. 3 and eq. 1)."""

import torch
from torch import Generator, Tensor

from adlight.detection.maps import MAPS, reduce_map, smooth
from adlight.mae.masking import draw_masks
from adlight.mae.network import MaskedAutoencoder
from adlight.mae.objective import PerceptualDistance
from adlight.mae.tokens import patchify, unpatchify
from adlight.types import Scores


def aggregate(views: Tensor, mask: Tensor, image: Tensor, patch: int) -> Tensor:
    """Mean of the predictions of each patch over the views that hid it (eq. 3). -> (B, C, H, W).

    With complementary masks that is 1/(n-1) sum_i M_i * y_i. A patch that no view hid (plain MAE) keeps the image's
    own pixels: the method says nothing of it.

    Args:
        views: predicted patches (n, B, L, P).
        mask: (n, L) bool, True = hidden.
        image: (B, C, H, W).
        patch: side of a patch in pixels.
    """
    views = views.to(torch.promote_types(views.dtype, torch.float32))  # a sum over views in bf16 would lose digits
    hidden = mask.to(views.device, non_blocking=True)[:, None, :, None]  # (n, 1, L, 1)
    count = hidden.sum(0)  # (1, L, 1)
    total = torch.where(hidden, views, 0).sum(0)  # (B, L, P)
    kept = patchify(image.to(total.dtype), patch)  # (B, L, P)
    mean = torch.where(count > 0, total / count.clamp(min=1), kept)  # (B, L, P)
    return unpatchify(mean, patch, image.shape[1])


def reconstruct(network: MaskedAutoencoder, image: Tensor, mask: Tensor) -> Tensor:
    """What the network makes of every patch without having seen it. (B, C, H, W), (n, L) -> (B, C, H, W)."""
    return aggregate(network(image, mask), mask, image, network.patch_size)


class MultiMaskScorer:
    """Scores images by how badly their hidden patches are predicted; one image = one score, whatever its batch.

    Args:
        mask_ratio: r, as in training.
        masks: `complementary` or `single`, as in training.
        score: `mse` (the article's eq. 1), `l1`, `ssim`, `msgms` or `lpips`.
        reduce: `mean` of the map as it is (the article's), `max` or `topk` of the smoothed map.
        smoothing: sigma of the Gaussian over the map, in pixels; 0 = none.
        topk: share of the pixels that `topk` averages.
        rounds: how many independent draws of masks are averaged in the reconstruction: n views each, in one pass.
        seed: of the masks; fixed, so that a score can be had again.

    Raises:
        ValueError: an unknown name, or a number out of range.
    """

    def __init__(
        self,
        mask_ratio: float = 0.75,
        masks: str = "complementary",
        score: str = "mse",
        reduce: str = "mean",
        smoothing: float = 4.0,
        topk: float = 0.01,
        rounds: int = 1,
        seed: int = 0,
    ) -> None:
        if score not in {*MAPS, "lpips"}:
            raise ValueError(f"score {score!r} is unknown: {', '.join(MAPS)} or lpips")
        if reduce not in ("mean", "max", "topk"):
            raise ValueError(f"reduce {reduce!r} is unknown: mean, max or topk")
        if rounds < 1 or smoothing < 0 or not 0 < topk <= 1:
            raise ValueError(f"rounds {rounds} >= 1, smoothing {smoothing} >= 0, 0 < topk {topk} <= 1 are needed")
        self.mask_ratio, self.masks, self.rounds, self.seed = mask_ratio, masks, rounds, seed
        self.reduce, self.smoothing, self.topk = reduce, smoothing, topk
        self.map = PerceptualDistance() if score == "lpips" else MAPS[score]

    @torch.no_grad()
    def __call__(self, network: MaskedAutoencoder, image: Tensor) -> Scores:
        """Score images (B, C, H, W) in [0, 1] with a network in eval mode."""
        generator = Generator().manual_seed(self.seed)
        draws = [draw_masks(self.masks, self.mask_ratio, network.num_patches, generator) for _ in range(self.rounds)]
        reconstruction = reconstruct(network, image, torch.cat(draws))  # (B, C, H, W)
        with torch.autocast(image.device.type, enabled=False):  # in bf16 many scores would be equal
            error = self.map(image, reconstruction)  # (B, H, W)
            pixel = smooth(error, self.smoothing)  # (B, H, W)
            # the mean is eq. 1; the blur, reflected at the borders, would not keep it
            image_score = reduce_map(error if self.reduce == "mean" else pixel, self.reduce, self.topk)  # (B,)
        return Scores(image=image_score, pixel=pixel, reconstruction=reconstruction)
