"""The module of `model=gan`: training of the encoder on a GAN that is trained before (Schlegl 2019), and validation."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor
from torch.optim import Optimizer

from adlight.detection.crossfitting import fetch
from adlight.detection.gathering import gather_rows
from adlight.detection.module import AnomalyModule, Pretrained
from adlight.detection.optimization import (
    OptimizerFactory,
    check_precision,
    log_terms,
    make_optimizer,
    optimizer_step,
    step_rng,
    stop_if_diverged,
)
from adlight.features.cache import images_of
from adlight.gan.detector import InversionDetector
from adlight.gan.module import AdversarialModule
from adlight.gan.networks import Encoder
from adlight.gan.scorer import InversionScorer
from adlight.gan.terms import feature_distance
from adlight.settings import Built, Seed, Text, checked
from adlight.types import Batch, Scores


@dataclass(frozen=True)
class ScoredTerms:
    """The score terms of one validation image."""

    index: int  # of the image or tile in its split
    image: int  # index of the image that a tile belongs to; otherwise equal to `index`
    label: int
    values: list[float]  # (T,)


class GANDetector(InversionDetector, AnomalyModule):
    """Trains the encoder of an `InversionDetector`.

    The GAN is trained first, as `pretraining`. This module freezes it and trains the encoder to invert it. Without an
    encoder nothing more is trained: the GAN is inverted by gradients, and validation only calibrates.

    Args:
        gan: the adversarial training, which holds generator and critic.
        encoder, scorer: see `InversionDetector`.
        encoder_optimizer: constructor of the encoder's optimizer; the learning rate decays to 0.
        encoder_epochs: number of epochs for the encoder.
        encoder_images: images to train the encoder on: `real` training images (Schlegl 2019, izi_f) or `generated`
            images (Berg 2019).
        kappa: weight of the feature distance in the encoder's loss.
        clip: largest norm of the encoder's gradient; 0 disables clipping.
        pretrained_gan: a finished run to take the GAN from instead of training one; the entry point loads it.
        seed: seed of the latents of generated images.

    Raises:
        ValueError: networks, scorer and epochs do not match, or a number is out of range.
    """

    gan: AdversarialModule

    @checked
    def __init__(
        self,
        gan: Built[AdversarialModule],
        encoder: Built[Encoder] | None,
        scorer: Built[InversionScorer],
        encoder_optimizer: OptimizerFactory,
        encoder_epochs: NonNegativeInt = 20,
        encoder_images: Literal["real", "generated"] = "real",
        kappa: NonNegativeFloat = 1.0,
        clip: NonNegativeFloat = 0.0,
        pretrained_gan: Text | None = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(gan, encoder, scorer)
        if scorer.method != "gradient" and (encoder is None or not encoder_epochs):
            raise ValueError(f"method={scorer.method} needs an encoder and encoder_epochs > 0, got {encoder_epochs}")
        self.automatic_optimization = False
        self.gan, self.pretrained_gan = gan, pretrained_gan
        self.encoder_optimizer, self.encoder_epochs = encoder_optimizer, encoder_epochs if encoder else 0
        self.encoder_images, self.kappa, self.clip, self.seed = encoder_images, kappa, clip, seed
        self.terms: list[ScoredTerms] = []

    @property
    def pretraining(self) -> AdversarialModule | None:
        """The training of the GAN; None if it comes from another run."""
        return None if self.pretrained_gan else self.gan

    @property
    def pretrained(self) -> Pretrained | None:
        """The run to take the GAN from, if any."""
        return Pretrained(self.pretrained_gan, "gan.") if self.pretrained_gan else None

    def describe(self) -> list[str]:
        """Describe the length of the GAN's training, and how it is inverted."""
        return [f"GAN: {int(self.gan.generator_steps)} generator steps; inversion: {self.scorer.method}"]

    def metadata(self) -> dict[str, Any]:
        """Return what the result file records besides the metrics."""
        return super().metadata() | {"generator_steps": int(self.gan.generator_steps)}

    def num_epochs(self, default: int, batches_per_epoch: Callable[[], int]) -> int:
        """Return the number of epochs for the encoder; `default` is the GAN's."""
        return self.encoder_epochs

    def setup(self, stage: str) -> None:
        """Freeze the GAN."""
        if stage == "fit":
            self.gan.eval().requires_grad_(False)

    def on_fit_start(self) -> None:
        """Check the trainer's precision."""
        check_precision(self.trainer)

    def configure_optimizers(self) -> Optimizer:
        """Build the encoder's optimizer."""
        assert self.encoder is not None
        optimizer = make_optimizer("encoder_optimizer", self.encoder_optimizer, self.encoder)
        self.rates = [group["lr"] for group in optimizer.param_groups]
        return optimizer

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Minimize |x - G(E(x))|^2 / N + kappa |f(x) - f(G(E(x)))|^2 / F (Schlegl 2019, izi_f)."""
        generator, critic, encoder = self.networks
        assert encoder is not None
        image = batch["image"]  # (B, C, H, W)
        if self.encoder_images == "generated":
            with torch.no_grad():
                image = generator(self.gan.draw_latents(len(image), step_rng(self, "encoder", self.seed)))
        decoded = generator(encoder(image))  # (B, C, H, W)
        residual, feature = (image - decoded).float().square().mean(), feature_distance(critic, image, decoded).mean()
        loss = residual + self.kappa * feature
        norm = optimizer_step(self.decay_rate(batch_idx), loss, self.clip)
        terms = {"encoder": loss, "residual": residual, "feature": feature, "encoder_gradient": norm}
        log_terms(self, terms, len(image), prog_bar="encoder")

    def decay_rate(self, batch_idx: int) -> Optimizer:
        """Decay the learning rates by half a cosine over all epochs, starting at the rates of the current config."""
        optimizer: Any = self.optimizers()
        done = (self.current_epoch + batch_idx / self.trainer.num_training_batches) / (self.trainer.max_epochs or 1)
        for group, rate in zip(optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * done)) / 2
        return optimizer

    def score(self, batch: Batch) -> Scores:
        """Score a batch, and store its terms for validation."""
        self.last_terms, scores = self.score_terms(batch["image"])
        return scores

    def on_validation_epoch_start(self) -> None:
        """Clear the terms of the previous validation, and fit the scorer to the training images."""
        super().on_validation_epoch_start()
        self.terms = []
        with torch.inference_mode(False):  # the fitted tensors outlive the validation
            self.scorer.fit(self.networks, self.read_training_images)

    def read_training_images(self) -> Iterator[Tensor]:
        """Read all training images in batches (B, C, H, W) in [0, 1]."""
        images = images_of(self.datamodule, "train")
        for part in torch.arange(len(images)).split(256):
            yield fetch(images, part, self.device)["image"]

    def on_train_epoch_end(self) -> None:
        """Stop a diverged run; the checkpoint of the previous epoch is kept."""
        stop_if_diverged(self, "encoder_optimizer.lr")

    def validation_step(self, batch: Batch, batch_idx: int) -> Scores:
        """Score the batch and collect its terms, which are standardized once all are known."""
        scores = super().validation_step(batch, batch_idx)
        index = batch["index"]
        image = batch["tile"][:, 0] if "tile" in batch else index
        rows = index.tolist(), image.tolist(), batch["label"].tolist(), self.last_terms.tolist()
        self.terms += map(ScoredTerms, *rows)
        return scores

    def on_validation_epoch_end(self) -> None:
        """Standardize the terms by the normal images of all processes, then calibrate as every detector does."""
        if self.scorer.score == "mixture":
            normal = [row.values for row in gather_rows(self.terms) if row.label == 0]
            self.fit_standardization(torch.tensor(normal, dtype=torch.float64))
            mixed = self.mix(torch.tensor([row.values for row in self.terms], device=self.device)).tolist()
            pairs = zip(self.validation_scores, mixed, strict=True)
            self.validation_scores = [replace(row, score=score) for row, score in pairs]
            largest: dict[int, float] = {}  # the highest score among the tiles of each normal image
            for row, score in zip(self.terms, mixed, strict=True):
                if row.label == 0:
                    largest[row.image] = max(score, largest.get(row.image, score))
            self.normal_scores = [replace(row, score=largest[row.index]) for row in self.normal_scores]
        super().on_validation_epoch_end()
