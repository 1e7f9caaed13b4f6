"""The detectors: trained autoencoders, and the error of what they reconstruct."""

from typing import Any

from adlight.detection.detector import AnomalyDetector
from adlight.detection.maps import ReconstructionError
from adlight.reconstruction.networks import ConvAutoencoder, UNet
from adlight.reconstruction.variational import VAE, VAEScorer
from adlight.settings import Built, checked
from adlight.types import Batch, Scores


class AutoencoderDetector(AnomalyDetector):
    """Images that an autoencoder of normal ones reconstructs badly are anomalous.

    Args:
        network: the autoencoder.
        scorer: compares images with their reconstructions.
    """

    @checked
    def __init__(self, network: Built[UNet | ConvAutoencoder], scorer: Built[ReconstructionError]) -> None:
        super().__init__()
        self.network, self.scorer = network, scorer

    def score(self, batch: Batch) -> Scores:
        """Score a batch."""
        return score_reconstruction(self.network, self.scorer, batch)


class DAGANDetector(AnomalyDetector):
    """Images that the generator of a DAGAN reconstructs badly are anomalous.

    Args:
        generator: G.
        discriminator: D, which does not score.
        scorer: compares images with G's reconstructions.
    """

    @checked
    def __init__(
        self,
        generator: Built[UNet | ConvAutoencoder],
        discriminator: Built[UNet | ConvAutoencoder],
        scorer: Built[ReconstructionError],
    ) -> None:
        super().__init__()
        self.generator, self.discriminator, self.scorer = generator, discriminator, scorer

    def score(self, batch: Batch) -> Scores:
        """Score a batch."""
        return score_reconstruction(self.generator, self.scorer, batch)


class VAEDetector(AnomalyDetector):
    """Images that a variational autoencoder of normal ones finds improbable are anomalous.

    Args:
        network: the autoencoder.
        scorer: scores images with it.
    """

    @checked
    def __init__(self, network: Built[VAE], scorer: Built[VAEScorer]) -> None:
        super().__init__()
        self.network, self.scorer = network, scorer

    @property
    def obstacle(self) -> str | None:
        """Graphs hold no gradient."""
        if self.scorer.method != "gradient":
            return None
        return "method=gradient differentiates; method=reconstruction and elbo can be exported"

    def score(self, batch: Batch) -> Scores:
        """Score a batch."""
        return self.scorer(self.network, batch["image"])


def score_reconstruction(network: Any, scorer: ReconstructionError, batch: Batch) -> Scores:
    """Score a batch by what a network makes of it."""
    reconstruction = network(batch["image"]).float()  # (B, C, H, W)
    score, pixel = scorer(batch["image"], reconstruction)  # (B,), (B, H, W)
    return Scores(image=score, pixel=pixel, reconstruction=reconstruction)
