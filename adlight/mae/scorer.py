"""The article's multi-mask score: predict the hidden tokens of each view, average, compare (eq. 3 and eq. 1)."""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from adlight.detection.detector import AnomalyDetector
from adlight.detection.maps import ReconstructionError, Reduction, Score
from adlight.detection.optimization import EMA
from adlight.mae.linear import LinearStart
from adlight.mae.masking import Ratio, Scheme, fixed_masks
from adlight.mae.network import MaskedAutoencoder
from adlight.mae.tokens import PixelTokenizer
from adlight.mae.whitened import WhitenedResidual
from adlight.settings import Built, Decay, PositiveShare, Seed, checked
from adlight.types import Batch, Scores


def aggregate(views: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
    """Average the predictions of each token over the views that hide it (eq. 3). (n, B, L, P), (n, L) -> (B, L, P).

    With complementary masks this is 1/(n-1) sum_i M_i * y_i. A token that no view hides (plain MAE) keeps its value in
    `tokens` (B, L, P).
    """
    views = views.to(torch.promote_types(views.dtype, torch.float32))  # in bf16, sums over views would lose digits
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
    """Reconstruct every token from the views that hide it. (B, C, H, W), (n, L), sizes (B, 2) -> (B, C, H, W).

    For `visible` see `MaskedAutoencoder.forward`. With `linear`, the network predicts the residual of `linear`.
    """
    tokens = tokenizer.tokenize(image, size)  # (B, L, P)
    views = network(tokens, mask, visible=visible)  # (n, B, L, P)
    if linear is None:
        return tokenizer.detokenize(aggregate(views, mask, tokens))  # (B, C, H, W)
    start = linear(tokens, mask)  # (B, L, P)
    return tokenizer.detokenize(start + aggregate(views, mask, tokens - start))  # (B, C, H, W)


class MultiMaskScorer(nn.Module):
    """Scores images by how badly their hidden parts are predicted; an image's score does not depend on its batch.

    Args:
        mask_ratio, masks: as in training, see `MAEModule`.
        score, reduce, smoothing, topk: see `ReconstructionError`; `score` may also be `mahalanobis`, the residual
            whitened by `whitening`, which is then required.
        rounds: number of draws of the masks; their predictions are averaged.
        seed: seed of the masks, which are the same for all images.
        whitening: measures residuals relative to the residuals of normal images.
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
        if score != "mahalanobis":
            self.error = ReconstructionError(score, reduce, smoothing, topk)
        elif whitening is not None:
            self.error = ReconstructionError("mse", reduce, smoothing, topk, whitening)
        else:
            raise ValueError("score mahalanobis needs whitening")
        self.mask_ratio, self.masks, self.rounds, self.seed = mask_ratio, masks, rounds, seed

    def drawn_masks(self, num_patches: int) -> tuple[Tensor, list[Tensor]]:
        """Return the masks of all rounds (n rounds, L) bool, and their visible patches, see `fixed_masks`."""
        return fixed_masks(self.masks, self.mask_ratio, num_patches, self.seed, self.rounds)

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
            network: predicts hidden tokens.
            tokenizer: cuts images into tokens.
            image: (B, C, H, W) in [0, 1].
            size: (B, 2), heights and widths of padded images.
            content: (B, H, W) bool, the region of interest.
            linear: predicts hidden tokens; the network then predicts its residual.
            fold: (B,), folds of held-out images, which are whitened without their own fold; None for other images.
        """
        mask, visible = self.drawn_masks(network.num_patches)  # (n rounds, L)
        reconstruction = reconstruct(network, tokenizer, image, mask, size, visible, linear)  # (B, C, H, W)
        if fold is None or self.whitening is None:
            score, pixel = self.error(image, reconstruction, size, content)  # (B,), (B, H, W)
            return Scores(image=score, pixel=pixel, reconstruction=reconstruction)
        score, pixel = image.new_zeros(len(image)), torch.zeros_like(image[:, 0])
        for k in fold.unique().tolist():
            rows = (fold == k).nonzero()[:, 0].to(image.device)
            parts = (None if part is None else part[rows] for part in (image, reconstruction, size, content))
            error = copy(self.error)
            error.error = self.whitening.folds[k]
            score[rows], pixel[rows] = error(*parts)  # type: ignore[arg-type]
        return Scores(image=score, pixel=pixel, reconstruction=reconstruction)


class MAEDetector(AnomalyDetector):
    """Detects images whose hidden parts are badly predicted.

    Args:
        tokenizer: converts images to tokens and back.
        network: constructor of the autoencoder, which takes the tokenizer's `grid`, `token_dim` and `token_mean`.
        scorer: scores images with the trained network.
        ema: decay of the exponential moving average of the weights, which is used for scoring; 0 for none.
        linear_start: number of principal components of a `LinearStart`, whose prediction the network corrects; 0 uses
            the mean at each position; None uses no `LinearStart`.
    """

    @checked
    def __init__(
        self,
        tokenizer: Built[PixelTokenizer],
        network: Callable[..., MaskedAutoencoder],
        scorer: Built[MultiMaskScorer],
        ema: Decay = 0.0,
        linear_start: NonNegativeInt | None = None,
    ) -> None:
        super().__init__()
        self.network = network(grid=tokenizer.grid, token_dim=tokenizer.dim, token_mean=tokenizer.mean)
        self.linear: LinearStart | None = None
        if linear_start is not None:
            self.linear = LinearStart(self.network.num_patches, tokenizer.dim, linear_start)
            nn.init.zeros_(self.network.decoder_pred.weight)
            nn.init.zeros_(self.network.decoder_pred.bias)
        self.tokenizer, self.scorer = tokenizer, scorer
        self.ema = EMA(self.network, ema) if ema else None

    def score(self, batch: Batch) -> Scores:
        """Score a batch."""
        return self.score_by_fold(batch, None)

    def score_by_fold(self, batch: Batch, fold: Tensor | None) -> Scores:
        """Score a batch; with `fold` (B,), residuals are compared with the normal residuals of the other folds."""
        image, size, content = batch["image"], batch.get("size"), batch.get("content")
        return self.scorer(self.averaged, self.tokenizer, image, size, content, self.linear, fold)

    @property
    def averaged(self) -> MaskedAutoencoder:
        """The network used for scoring, with averaged weights if `ema` is set."""
        return self.network if self.ema is None else self.ema.network  # type: ignore[return-value]
