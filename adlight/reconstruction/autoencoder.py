"""Autoencoders of normal images: what they cannot reconstruct is anomalous."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from adlight.detection.maps import ReconstructionError
from adlight.detection.module import AnomalyModule
from adlight.detection.optimization import log_terms, schedule_by_step, stop_if_diverged
from adlight.mae.objective import ReconstructionLoss
from adlight.reconstruction.networks import ConvAutoencoder, UNet
from adlight.settings import Built, Share, checked
from adlight.types import Batch, Scores


class AutoencoderModule(AnomalyModule):
    """Train y = f(x) to reconstruct normal images by ssim (1 - SSIM(x, y)) + l1 |x - y| (Bergmann 2018; article eq. 4).

    The score is the reconstruction's error; the article's U-Net column is such a detector.

    Args:
        network: the autoencoder.
        objective: reconstruction loss; None where nothing will be trained.
        scorer: compares images with their reconstructions.
        optimizer: makes the optimizer from parameters.
        warmup: share of the steps in which the learning rate rises; a half cosine to 0 follows.
    """

    takes_padding = False  # convolutions look across the content's border

    @checked
    def __init__(
        self,
        network: Built[UNet | ConvAutoencoder],
        objective: Built[ReconstructionLoss] | None,
        scorer: Built[ReconstructionError],
        optimizer: Callable[..., Optimizer],
        warmup: Share = 0.05,
    ) -> None:
        super().__init__()
        self.network, self.objective, self.scorer = network, objective, scorer
        self.optimizer, self.warmup = optimizer, warmup

    def describe(self) -> list[str]:
        """Name the network, and say how large it is."""
        return [describe_network("autoencoder", self.network)]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Reconstruct, compare."""
        assert self.objective is not None
        image = batch["image"]  # (B, C, H, W)
        terms = self.objective(image, self.network(image))
        log_terms(self, terms, len(image))
        return terms["loss"]

    def configure_optimizers(self) -> Any:
        """Warm up, then half a cosine, by step."""
        return schedule_by_step(self, self.optimizer(self.network.parameters()), self.warmup)

    def on_train_epoch_end(self) -> None:
        """Stop once the loss is not finite; the checkpoints of earlier epochs are kept."""
        stop_if_diverged(self)

    def score(self, batch: Batch) -> Scores:
        """Score a batch."""
        image = batch["image"]  # (B, C, H, W)
        reconstruction = self.network(image).float()  # (B, C, H, W)
        score, pixel = self.scorer(image, reconstruction)  # (B,), (B, H, W)
        return Scores(image=score, pixel=pixel, reconstruction=reconstruction)


def describe_network(name: str, network: nn.Module) -> str:
    """Say what a network is and how many weights it has."""
    weights = sum(parameter.numel() for parameter in network.parameters())
    return f"{name}: {type(network).__name__}, {weights / 1e6:.2f} million weights"
