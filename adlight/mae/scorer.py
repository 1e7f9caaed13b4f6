"""The multi-mask score of the article: reconstruct what each view hides, average, compare (eq. 3 and eq. 1)."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Generator, Tensor, nn

from adlight.detection.maps import ReconstructionError, Reduction, Score
from adlight.mae.linear import LinearStart
from adlight.mae.masking import Ratio, Scheme, draw_masks
from adlight.mae.network import MaskedAutoencoder, split_by_size
from adlight.mae.tokens import PixelTokenizer
from adlight.mae.whitened import WhitenedResidual
from adlight.settings import Built, PositiveShare, Seed, checked
from adlight.types import Scores


def aggregate(views: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
    """Average the predictions of each token over the views that hid it (eq. 3). -> (B, L, P).

    With complementary masks that is 1/(n-1) sum_i M_i * y_i. A token that no view hid (plain MAE) keeps its own
    value: the method says nothing of it.

    Args:
        views: predicted tokens (n, B, L, P).
        mask: (n, L) bool, True = hidden.
        tokens: of the images, (B, L, P).
    """
    views = views.to(torch.promote_types(views.dtype, torch.float32))  # a sum over views in bf16 would lose digits
    hidden = mask.to(views.device, non_blocking=True)[:, None, :, None]  # (n, 1, L, 1)
    count = hidden.sum(0)  # (1, L, 1)
    total = torch.where(hidden, views, 0).sum(0)  # (B, L, P)
    return torch.where(count > 0, total / count.clamp(min=1), tokens.to(total.dtype))  # (B, L, P)


def reconstruct(
    network: MaskedAutoencoder,
    tokenizer: PixelTokenizer,
    image: Tensor,
    mask: Tensor,
    size: Tensor | None = None,
    visible: Sequence[Tensor] | None = None,
    linear: LinearStart | None = None,
) -> Tensor:
    """Reconstruct every token without having seen it. (B, C, H, W), (n, L), sizes (B, 2) or None -> (B, C, H, W).

    `visible`: see `MaskedAutoencoder.forward`. With `linear` the network's part is what that leaves.
    """
    tokens = tokenizer.tokenize(image, size)  # (B, L, P)
    views = network(tokens, mask, visible=visible)  # (n, B, L, P)
    if linear is None:
        return tokenizer.detokenize(aggregate(views, mask, tokens))  # (B, C, H, W)
    start = linear(tokens, mask)  # (B, L, P)
    return tokenizer.detokenize(start + aggregate(views, mask, tokens - start))  # (B, C, H, W)


class MultiMaskScorer(nn.Module):
    """Score images by how badly their hidden parts are predicted; one image = one score, whatever its batch.

    Args:
        mask_ratio: r, as in training.
        masks: `complementary` or `single`, as in training.
        score, reduce, smoothing, topk: of the map and the image score, see `ReconstructionError`; and `mahalanobis`,
            the residual whitened by `whitening`.
        rounds: draws of masks whose predictions are averaged.
        seed: of the masks, the same ones for all images.
        whitening: measures residuals by normal ones.

    Raises:
        ValueError: an unknown name, a number out of range, or `mahalanobis` without `whitening`.
    """

    @checked
    def __init__(
        self,
        mask_ratio: Ratio = 0.75,
        masks: Scheme = "complementary",
        score: Score | Literal["mahalanobis"] = "mse",
        reduce: Reduction = "mean",
        smoothing: NonNegativeFloat = 4.0,
        topk: PositiveShare = 0.01,
        rounds: PositiveInt = 1,
        seed: Seed = 0,
        whitening: Built[WhitenedResidual] | None = None,
    ) -> None:
        super().__init__()
        self.whitens, self.whitening = score == "mahalanobis", whitening
        if score == "mahalanobis":
            if whitening is None:
                raise ValueError("score mahalanobis needs whitening")
            self.error = ReconstructionError("mse", reduce, smoothing, topk, whitening)
        else:
            self.error = ReconstructionError(score, reduce, smoothing, topk)
        self.mask_ratio, self.masks, self.rounds, self.seed = mask_ratio, masks, rounds, seed
        self.drawn: dict[int, tuple[Tensor, list[Tensor]]] = {}  # by number of patches

    def drawn_masks(self, num_patches: int) -> tuple[Tensor, list[Tensor]]:
        """Draw the masks, the same ones for all images. -> (n rounds, L) bool, and `split_by_size` of the rest."""
        if num_patches not in self.drawn:
            with torch.inference_mode(False):
                rng = Generator().manual_seed(self.seed)
                mask = torch.cat(
                    [draw_masks(self.masks, self.mask_ratio, num_patches, rng) for _ in range(self.rounds)]
                )
                self.drawn[num_patches] = mask, split_by_size(~mask)
        return self.drawn[num_patches]

    @torch.no_grad()
    def forward(
        self,
        network: MaskedAutoencoder,
        tokenizer: PixelTokenizer,
        image: Tensor,
        size: Tensor | None = None,
        content: Tensor | None = None,
        linear: LinearStart | None = None,
        fold: Tensor | None = None,
    ) -> Scores:
        """Score images with a network in eval mode.

        Args:
            network: predicts what is hidden.
            tokenizer: makes its tokens.
            image: (B, C, H, W) in [0, 1].
            size: (B, 2) of padded images.
            content: (B, H, W) bool, the region of interest.
            linear: what the network starts from.
            fold: (B,) of held-out images, which are whitened without their own fold; None: others.
        """
        mask, visible = self.drawn_masks(network.num_patches)  # (n rounds, L)
        reconstruction = reconstruct(network, tokenizer, image, mask, size, visible, linear)  # (B, C, H, W)
        if fold is None or self.whitening is None:
            score, pixel = self.error(image, reconstruction, size, content)  # (B,), (B, H, W)
            return Scores(image=score, pixel=pixel, reconstruction=reconstruction)
        score, pixel = image.new_zeros(len(image)), torch.zeros_like(image[:, 0])
        for k in fold.unique().tolist():
            rows = (fold == k).nonzero()[:, 0].to(image.device)
            parts = (None if one is None else one[rows] for one in (image, reconstruction, size, content))
            with self.whitening.without(k):
                score[rows], pixel[rows] = self.error(*parts)  # type: ignore[arg-type]
        return Scores(image=score, pixel=pixel, reconstruction=reconstruction)
