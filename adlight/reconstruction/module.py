"""Training of autoencoders on normal images: plain autoencoders by their reconstruction error, VAEs by the ELBO."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from adlight.detection.maps import ReconstructionError
from adlight.detection.module import AnomalyModule
from adlight.detection.optimization import log_terms, schedule_by_step, step_rng
from adlight.mae.objective import ReconstructionLoss
from adlight.reconstruction.detector import AutoencoderDetector, VAEDetector, describe_network
from adlight.reconstruction.networks import ConvAutoencoder, UNet
from adlight.reconstruction.vae import VAE, VAEScorer
from adlight.rng import to_device
from adlight.settings import Built, Seed, Share, checked
from adlight.types import Batch


class AutoencoderModule(AutoencoderDetector, AnomalyModule):
    """Trains y = f(x) on normal images with the loss ssim (1 - SSIM(x, y)) + l1 |x - y| (Bergmann 2018; article eq. 4).

    The score is the reconstruction error. The U-Net in the article's table is such a detector.

    Args:
        network, scorer: see `AutoencoderDetector`.
        objective: the reconstruction loss; None if the detector will not be trained.
        optimizer: constructor of the network's optimizer.
        warmup: fraction of the steps in which the learning rate rises linearly; half a cosine to 0 follows.
    """

    @checked
    def __init__(
        self,
        network: Built[UNet | ConvAutoencoder],
        objective: Built[ReconstructionLoss] | None,
        scorer: Built[ReconstructionError],
        optimizer: Callable[..., Optimizer],
        warmup: Share = 0.05,
    ) -> None:
        super().__init__(network, scorer)
        self.objective, self.optimizer, self.warmup = objective, optimizer, warmup

    def describe(self) -> list[str]:
        """Describe the network."""
        return [describe_network("autoencoder", self.network)]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the reconstruction loss of a batch."""
        assert self.objective is not None
        image = batch["image"]  # (B, C, H, W)
        terms = self.objective(image, self.network(image))
        log_terms(self, terms, len(image))
        return terms["loss"]

    def configure_optimizers(self) -> Any:
        """Make the optimizer with a warm-up and a half-cosine decay, by step."""
        return schedule_by_step(self, self.optimizer(self.network.parameters()), self.warmup)


class VAEModule(VAEDetector, AnomalyModule):
    """Trains a variational autoencoder on normal images by -ELBO / N, with N values per image (Kingma 2014).

    Args:
        network, scorer: see `VAEDetector`.
        optimizer, warmup: see `AutoencoderModule`.
        seed: seed of the noise, which otherwise depends only on the step and the process.
    """

    @checked
    def __init__(
        self,
        network: Built[VAE],
        scorer: Built[VAEScorer],
        optimizer: Callable[..., Optimizer],
        warmup: Share = 0.05,
        seed: Seed = 0,
    ) -> None:
        super().__init__(network, scorer)
        self.optimizer, self.warmup, self.seed = optimizer, warmup, seed

    def describe(self) -> list[str]:
        """Describe the network and the score."""
        return [f"{describe_network('autoencoder', self.network)}; score: {self.scorer.method}"]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return -ELBO / N of a batch, with one z drawn per image."""
        image = batch["image"]  # (B, C, H, W)
        noise = torch.randn(len(image), self.network.latent, generator=step_rng(self, "vae", self.seed))  # (B, Z)
        _, surprise, kl = self.network(image, to_device(noise, self.device))
        values = image[0].numel()
        terms = {"surprise": surprise.mean() / values, "kl": kl.mean() / values}
        terms["loss"] = terms["surprise"] + terms["kl"]
        log_terms(self, terms, len(image))
        return terms["loss"]

    def configure_optimizers(self) -> Any:
        """Make the optimizer with a warm-up and a half-cosine decay, by step."""
        return schedule_by_step(self, self.optimizer(self.network.parameters()), self.warmup)
