"""The detector: a trained masked autoencoder and the score of what it mispredicts."""

from collections.abc import Callable

from pydantic import NonNegativeInt
from torch import Tensor, nn

from adlight.detection.detector import AnomalyDetector
from adlight.detection.ema import EMA
from adlight.mae.linear import LinearStart
from adlight.mae.network import MaskedAutoencoder
from adlight.mae.scorer import MultiMaskScorer
from adlight.mae.tokens import PixelTokenizer
from adlight.settings import Built, Decay, checked
from adlight.types import Batch, Scores


class MAEDetector(AnomalyDetector):
    """Images whose hidden parts are badly predicted are anomalous.

    Args:
        tokenizer: makes tokens of images, and images of tokens.
        network: makes the autoencoder for the tokenizer's `grid`, `token_dim` and `token_mean`.
        scorer: scores images with the trained network.
        ema: decay of the averaged weights that score; 0 = none.
        linear_start: number of principal components of what a `LinearStart` predicts, and the network corrects; 0: the
            mean of each place; None: the network starts from the usual value.
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
        """Score a batch, with the averaged weights if there are any."""
        return self.score_by_fold(batch, None)

    def score_by_fold(self, batch: Batch, fold: Tensor | None) -> Scores:
        """Score a batch; held-out images of folds (B,) without what their own fold says of normal residuals."""
        image, size, content = batch["image"], batch.get("size"), batch.get("content")
        return self.scorer(self.averaged, self.tokenizer, image, size, content, self.linear, fold)

    @property
    def averaged(self) -> MaskedAutoencoder:
        """The network that scores."""
        return self.network if self.ema is None else self.ema.network  # type: ignore[return-value]
