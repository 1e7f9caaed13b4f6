"""Dual autoencoder GAN (Tang 2020, DAGAN): two adversarial autoencoders, based on Skip-GANomaly and BEGAN."""

from typing import Any

import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.optim import Optimizer

from adlight.detection.maps import ReconstructionError
from adlight.detection.module import AnomalyModule
from adlight.detection.optimization import (
    OptimizerFactory,
    check_precision,
    log_terms,
    make_optimizer,
    optimizer_step,
    set_rates,
)
from adlight.reconstruction.detector import DAGANDetector, describe_network
from adlight.reconstruction.networks import ConvAutoencoder, UNet
from adlight.settings import Built, checked
from adlight.types import Batch


class DAGANModule(DAGANDetector, AnomalyModule):
    """Trains two autoencoders: G reconstructs the image x, and D tells x from G(x) by reconstructing them differently.

    L_adv = E|D(x) - D(G(x))|_2,  L_G = E|x - G(x)|_2,  L_D = E|x - D(x)|_2  (Tang 2020, section 3.2)
    G minimizes adversarial L_adv + generator_context L_G, and D minimizes discriminator_context L_D - adversarial
    L_adv; both take a step on each batch. The score is the reconstruction error of G.

    Norms are divided by sqrt(N), where N is the number of values of an image, so that weights and learning rates do not
    depend on the image size. The original rescales scores by their minimum and maximum over the test set; this is
    omitted, as it uses the test set and does not change the ranking.

    Args:
        generator, discriminator, scorer: see `DAGANDetector`.
        optimizer: constructor of each network's optimizer.
        adversarial, generator_context, discriminator_context: weights of the losses; 1, 40 and 1 in the original.
        clip: largest norm of a network's gradient; 0 disables clipping.
    """

    @checked
    def __init__(
        self,
        generator: Built[UNet | ConvAutoencoder],
        discriminator: Built[UNet | ConvAutoencoder],
        scorer: Built[ReconstructionError],
        optimizer: OptimizerFactory,
        adversarial: NonNegativeFloat = 1.0,
        generator_context: NonNegativeFloat = 40.0,
        discriminator_context: NonNegativeFloat = 1.0,
        clip: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(generator, discriminator, scorer)
        self.automatic_optimization = False
        self.optimizer, self.adversarial, self.clip = optimizer, adversarial, clip
        self.generator_context, self.discriminator_context = generator_context, discriminator_context

    def describe(self) -> list[str]:
        """Describe the networks."""
        return [describe_network(name, getattr(self, name)) for name in ("generator", "discriminator")]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the discriminator, then the generator."""
        x = batch["image"]  # (B, C, H, W)
        optimizers: Any = self.optimizers()
        discriminator_optimizer, generator_optimizer = optimizers
        y = self.generator(x)  # (B, C, H, W)
        terms = self.discriminator_loss(x, y.detach())
        optimizer_step(discriminator_optimizer, terms["discriminator"], self.clip)
        terms |= self.generator_loss(x, y)
        optimizer_step(generator_optimizer, terms["generator"], self.clip)
        log_terms(self, terms, len(x), prog_bar="generator")

    def discriminator_loss(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return D's loss on images x and reconstructions y (B, C, H, W), as `discriminator`, and terms to log."""
        real, fake = self.discriminator(torch.cat([x, y])).chunk(2)  # (B, C, H, W) each
        context = distance(x, real).mean()  # L_D
        loss = self.discriminator_context * context - self.adversarial * distance(real, fake).mean()
        return {"discriminator": loss, "discriminator_context": context}

    def generator_loss(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return G's loss on images x and reconstructions y (B, C, H, W), as `generator`, and terms to log."""
        with torch.no_grad():
            real = self.discriminator(x)  # (B, C, H, W)
        adversarial, context = distance(real, self.discriminator(y)).mean(), distance(x, y).mean()  # L_adv, L_G
        loss = self.adversarial * adversarial + self.generator_context * context
        return {"generator": loss, "adversarial": adversarial, "generator_context": context}

    def on_fit_start(self) -> None:
        """Check the trainer's precision."""
        check_precision(self.trainer)

    def configure_optimizers(self) -> list[Optimizer]:
        """Build the optimizers of discriminator and generator."""
        networks = self.discriminator, self.generator
        optimizers = [make_optimizer("optimizer", self.optimizer, network) for network in networks]
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        return optimizers

    def on_train_start(self) -> None:
        """Continue a resumed run with the learning rates of its config."""
        set_rates(self.trainer.optimizers, self.rates)


def distance(x: Tensor, y: Tensor) -> Tensor:
    """Compute |x - y|_2 / sqrt(N) of each image. (B, C, H, W) twice -> (B,)."""
    return (x - y).float().flatten(1).norm(dim=1) / x[0].numel() ** 0.5
