"""The detector: a trained masked autoencoder and the score of what it mispredicts."""

from collections.abc import Callable

from adlight.detection.detector import AnomalyDetector
from adlight.detection.ema import EMA
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
    """

    @checked
    def __init__(
        self,
        tokenizer: Built[PixelTokenizer],
        network: Callable[..., MaskedAutoencoder],
        scorer: Built[MultiMaskScorer],
        ema: Decay = 0.0,
    ) -> None:
        super().__init__()
        self.network = network(grid=tokenizer.grid, token_dim=tokenizer.dim, token_mean=tokenizer.mean)
        self.tokenizer, self.scorer = tokenizer, scorer
        self.ema = EMA(self.network, ema) if ema else None

    def score(self, batch: Batch) -> Scores:
        """Score a batch, with the averaged weights if there are any."""
        network = self.network if self.ema is None else self.ema.network
        return self.scorer(network, self.tokenizer, batch["image"], batch.get("size"), batch.get("content"))  # type: ignore[arg-type]
