"""Training of autoencoders of normal images: plain ones by their error, variational ones by the evidence."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from adlight.detection.maps import ReconstructionError
from adlight.detection.module import AnomalyModule
from adlight.detection.optimization import log_terms, schedule_by_step, step_rng, stop_if_diverged
from adlight.mae.objective import ReconstructionLoss
from adlight.reconstruction.detector import AutoencoderDetector, VAEDetector, describe_network
from adlight.reconstruction.networks import ConvAutoencoder, UNet
from adlight.reconstruction.vae import VAE, VAEScorer
from adlight.rng import to_device
from adlight.settings import Built, Seed, Share, checked
from adlight.types import Batch


class AutoencoderModule(AutoencoderDetector, AnomalyModule):
    """Train y = f(x) to reconstruct normal images by ssim (1 - SSIM(x, y)) + l1 |x - y| (Bergmann 2018; article eq. 4).

    The score is the reconstruction's error; the article's U-Net column is such a detector.

    Args:
        network: the autoencoder.
        objective: reconstruction loss; None where nothing will be trained.
        scorer: compares images with their reconstructions.
        optimizer: makes the optimizer from parameters.
        warmup: share of the steps in which the learning rate rises; a half cosine to 0 follows.
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


class VAEModule(VAEDetector, AnomalyModule):
    """Train a variational autoencoder of normal images by its -ELBO per value (Kingma 2014).

    Args:
        network: the autoencoder.
        scorer: scores images with it.
        optimizer: makes the optimizer from parameters.
        warmup: share of the steps in which the learning rate rises; a half cosine to 0 follows.
        seed: of the noise, which depends on it, the batch and the process only.
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
        """Say how large the network is, and how it scores."""
        return [f"{describe_network('autoencoder', self.network)}; score: {self.scorer.method}"]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Draw one z per image, and bound."""
        image = batch["image"]  # (B, C, H, W)
        noise = torch.randn(len(image), self.network.latent, generator=step_rng(self, "vae", self.seed))  # (B, Z)
        _, surprise, kl = self.network(image, to_device(noise, self.device))
        values = image[0].numel()
        terms = {"surprise": surprise.mean() / values, "kl": kl.mean() / values}
        terms["loss"] = terms["surprise"] + terms["kl"]
        log_terms(self, terms, len(image))
        return terms["loss"]

    def configure_optimizers(self) -> Any:
        """Warm up, then half a cosine, by step."""
        return schedule_by_step(self, self.optimizer(self.network.parameters()), self.warmup)

    def on_train_epoch_end(self) -> None:
        """Stop once the loss is not finite; the checkpoints of earlier epochs are kept."""
        stop_if_diverged(self)
