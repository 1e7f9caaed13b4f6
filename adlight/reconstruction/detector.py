"""Detectors by reconstruction: images are scored by how badly trained autoencoders reconstruct them."""

from torch import nn

from adlight.detection.detector import AnomalyDetector
from adlight.detection.maps import ReconstructionError
from adlight.reconstruction.networks import ConvAutoencoder, UNet
from adlight.reconstruction.vae import VAE, VAEScorer
from adlight.settings import Built, checked
from adlight.types import Batch, Scores


class AutoencoderDetector(AnomalyDetector):
    """Detects images that an autoencoder trained on normal images cannot reconstruct.

    Args:
        network: the autoencoder.
        scorer: compares images with their reconstructions.
    """

    takes_padding = False  # convolutions would mix padding into the content

    @checked
    def __init__(self, network: Built[UNet | ConvAutoencoder], scorer: Built[ReconstructionError]) -> None:
        super().__init__()
        self.network, self.scorer = network, scorer

    def score(self, batch: Batch) -> Scores:
        """Score a batch."""
        return score_reconstruction(self.network, self.scorer, batch)


class VAEDetector(AnomalyDetector):
    """Detects images that a variational autoencoder trained on normal images reconstructs badly or finds unlikely.

    Args:
        network: the autoencoder.
        scorer: scores images with the autoencoder.
    """

    takes_padding = False

    @checked
    def __init__(self, network: Built[VAE], scorer: Built[VAEScorer]) -> None:
        super().__init__()
        self.network, self.scorer = network, scorer

    @property
    def export_blocker(self) -> str | None:
        """The reason why the method cannot be exported, if any: a graph cannot differentiate."""
        if self.scorer.method != "gradient":
            return None
        return "method=gradient differentiates; method=reconstruction and method=elbo can be exported"

    def score(self, batch: Batch) -> Scores:
        """Score a batch."""
        return self.scorer(self.network, batch["image"])


class DAGANDetector(AnomalyDetector):
    """Detects images that DAGAN's generator cannot reconstruct.

    Args:
        generator: G, a U-Net with skips in the original.
        discriminator: D, the autoencoder against which G is trained.
        scorer: compares images with G's reconstructions; `reduce=mean` of `mse` ranks images like |x - G(x)|_2.
    """

    takes_padding = False

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


def score_reconstruction(network: nn.Module, scorer: ReconstructionError, batch: Batch) -> Scores:
    """Score the images of a batch by the error of their reconstructions."""
    image = batch["image"]  # (B, C, H, W)
    reconstruction = network(image).float()  # (B, C, H, W)
    score, pixel = scorer(image, reconstruction)  # (B,), (B, H, W)
    return Scores(image=score, pixel=pixel, reconstruction=reconstruction)


def describe_network(name: str, network: nn.Module) -> str:
    """Describe a network by its type and its number of weights."""
    weights = sum(parameter.numel() for parameter in network.parameters())
    return f"{name}: {type(network).__name__}, {weights / 1e6:.2f} million weights"
