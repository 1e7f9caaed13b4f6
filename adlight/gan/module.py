"""Adversarial training of the generator and the critic (thesis, sections 3.3 and 3.4; Gulrajani 2017, algorithm 1)."""

import math
from collections.abc import Callable
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor
from torch.optim import Optimizer

from adlight.detection.optimization import (
    OptimizerFactory,
    check_precision,
    log_terms,
    make_optimizer,
    optimizer_step,
    set_rates,
    step_rng,
    stop_if_diverged,
)
from adlight.gan.detector import GAN
from adlight.gan.networks import Critic, Generator
from adlight.gan.objectives import AdversarialObjective
from adlight.rng import to_device
from adlight.settings import Built, Decay, Seed, checked
from adlight.types import Batch, UserError


class AdversarialModule(GAN, pl.LightningModule):
    """Trains a GAN on normal images: a critic step on each batch, and a generator step on every n_critic-th batch.

    Args:
        generator, critic, ema: see `GAN`.
        objective: the losses of both networks.
        critic_optimizer, generator_optimizer: constructors of the optimizers.
        n_critic: number of critic steps per generator step, counted over the whole run.
        generator_steps: number of generator steps to train for, rounded up to whole epochs, instead of a number of
            epochs.
        clip: largest norm of a network's gradient; 0 disables clipping.
        seed: seed of latents and penalties, which otherwise depend only on the step and the process.
    """

    @checked
    def __init__(
        self,
        generator: Built[Generator],
        critic: Built[Critic],
        objective: Built[AdversarialObjective],
        critic_optimizer: OptimizerFactory,
        generator_optimizer: OptimizerFactory,
        n_critic: PositiveInt = 5,
        generator_steps: PositiveInt | None = None,
        ema: Decay = 0.99,
        clip: NonNegativeFloat = 0.0,
        seed: Seed = 0,
    ) -> None:
        super().__init__(generator, critic, ema)
        self.automatic_optimization = False
        self.objective = objective
        self.optimizer_factories = {"critic": critic_optimizer, "generator": generator_optimizer}
        self.n_critic, self.max_generator_steps, self.clip, self.seed = n_critic, generator_steps, clip, seed

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the critic and, on every n_critic-th batch, the generator (thesis, section 3.4)."""
        rng, real = step_rng(self, "gan", self.seed), batch["image"]  # (B, C, H, W)
        with torch.no_grad():
            fake = self.generator(self.draw_latents(len(real), rng))  # (B, C, H, W)
        terms = self.objective.critic_loss(self.critic, real, fake, rng)  # eq. 3-5
        terms["critic_gradient"] = self.update("critic", terms["critic"])
        self.objective.constrain(self.critic)
        if (self.trainer.fit_loop.total_batch_idx + 1) % self.n_critic == 0:
            fake = self.generator(self.draw_latents(len(real), rng))  # (B, C, H, W)
            terms["generator"] = self.objective.generator_loss(self.critic, fake)
            terms["generator_gradient"] = self.update("generator", terms["generator"])
            self.generator_steps += 1
            if self.ema is not None:
                self.ema.update(self.generator)
        log_terms(self, terms, len(real), prog_bar="wasserstein")
        self.log("generator_steps", self.generator_steps.float(), on_step=False, on_epoch=True, reduce_fx="max")

    def update(self, name: str, loss: Tensor) -> Tensor:
        """Take a step with the named network's optimizer. -> the gradient's norm."""
        optimizers = dict(zip(self.optimizer_factories, self.optimizers(), strict=True))
        return optimizer_step(optimizers[name], loss, self.clip)

    def draw_latents(self, count: int, rng: torch.Generator) -> Tensor:
        """Draw z ~ N(0, I). -> (B, Z)."""
        return to_device(torch.randn(count, self.generator.latent, generator=rng), self.device)

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """Generate images from latents that are the same in every call. -> (B, C, H, W)."""
        return self.trained_generator(self.draw_latents(count, torch.Generator().manual_seed(self.seed)))

    def num_epochs(self, default: int, batches_per_epoch: Callable[[], int]) -> int:
        """Return the number of epochs that `generator_steps` takes, or `default` if that is not set."""
        if self.max_generator_steps is None:
            return default
        return math.ceil(self.max_generator_steps * self.n_critic / batches_per_epoch())

    def on_fit_start(self) -> None:
        """Check the trainer's precision, and that there are enough images for the settings."""
        check_precision(self.trainer)
        data = cast(Any, self.trainer).datamodule
        images = len(data.records("train")) // self.trainer.world_size
        if data.batch_size > images:
            raise UserError(f"batch_size={data.batch_size} is larger than the {images} training images per process")
        if self.n_critic > (batches := math.ceil(images / data.batch_size) * (self.trainer.max_epochs or 0)):
            raise UserError(f"n_critic={self.n_critic} in {batches} batches never trains the generator: lower it")

    def configure_optimizers(self) -> list[Optimizer]:
        """Build the optimizers of critic and generator."""
        optimizers = [
            make_optimizer(f"{name}_optimizer", factory, getattr(self, name))
            for name, factory in self.optimizer_factories.items()
        ]
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        return optimizers

    def on_train_start(self) -> None:
        """Continue a resumed run with the learning rates of its config, which may differ from the checkpoint's."""
        set_rates(self.trainer.optimizers, self.rates)

    def on_train_epoch_end(self) -> None:
        """Stop a diverged run; the checkpoint of the previous epoch is kept."""
        stop_if_diverged(self, "critic_optimizer.lr")
