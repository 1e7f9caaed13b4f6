"""Detector by GAN inversion: a trained GAN, the encoder that inverts it, and the score of what it cannot generate."""

from typing import Any

import torch
from torch import Tensor, nn

from adlight.detection.detector import AnomalyDetector
from adlight.detection.optimization import EMA
from adlight.gan.inversion import Ball, Networks
from adlight.gan.networks import Critic, Encoder, Generator
from adlight.gan.scorer import TERMS, InversionScorer
from adlight.settings import Built, Decay, checked
from adlight.types import Batch, Scores


class GAN(nn.Module):
    """Generator and critic.

    Args:
        generator, critic: the networks.
        ema: decay of the generator's weight average, used everywhere except in its own training; 0 disables it.

    Raises:
        ValueError: networks for different sizes of images or latents.
    """

    generator_steps: Tensor

    @checked
    def __init__(self, generator: Built[Generator], critic: Built[Critic], ema: Decay = 0.0) -> None:
        super().__init__()
        check_same_sizes(generator, critic=critic)
        self.generator, self.critic = generator, critic
        self.ema = EMA(generator, ema) if ema else None
        self.register_buffer("generator_steps", torch.tensor(0))

    @property
    def trained_generator(self) -> Generator:
        """The generator to use except in its own training: the weight average if there is one."""
        return self.generator if self.ema is None else self.ema.network  # type: ignore[return-value]


class InversionDetector(AnomalyDetector):
    """Detect images that a GAN trained on normal images cannot generate.

    Args:
        gan: generator and critic.
        encoder: maps an image to its latent; None if the scorer searches by gradients alone.
        scorer: inverts the generator and scores images.

    Attributes:
        latent_center, latent_radius: (Z,) and scalar, the ball that the scorer's `reach` needs; None until fitted.

    Raises:
        ValueError: networks for different sizes of images or latents.
    """

    takes_padding = False
    latent_center: Tensor | None
    latent_radius: Tensor | None
    term_mean: Tensor
    term_deviation: Tensor

    @checked
    def __init__(self, gan: Built[GAN], encoder: Built[Encoder] | None, scorer: Built[InversionScorer]) -> None:
        super().__init__()
        check_same_sizes(gan.generator, encoder=encoder)
        self.gan, self.encoder, self.scorer = gan, encoder, scorer
        self.register_buffer("term_mean", torch.zeros(len(TERMS)))
        self.register_buffer("term_deviation", torch.ones(len(TERMS)))
        self.register_buffer("latent_center", None, persistent=False)  # in `get_extra_state`, as few runs have it
        self.register_buffer("latent_radius", None, persistent=False)

    @property
    def networks(self) -> Networks:
        """The networks to score with, including the averaged generator if there is one."""
        return Networks(self.gan.trained_generator, self.gan.critic, self.encoder)

    @property
    def ball(self) -> Ball | None:
        """The ball of latents that training images reach, if it is fitted."""
        if self.latent_center is None or self.latent_radius is None:
            return None
        return Ball(self.latent_center, self.latent_radius)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the calibration results, and the ball of latents if it is fitted."""
        return super().get_extra_state() | ({} if self.ball is None else {"ball": tuple(self.ball)})

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore both."""
        super().set_extra_state(state)
        device = self.term_mean.device
        ball = [part.to(device) for part in state.get("ball", ())]
        self.latent_center, self.latent_radius = ball or (None, None)

    @property
    def export_blocker(self) -> str | None:
        """The reason why the method cannot be exported: a graph cannot search by gradients."""
        if self.scorer.method == "encoder":
            return None
        return f"method={self.scorer.method} searches by gradients; method=encoder, one forward pass, can be exported"

    def score(self, batch: Batch) -> Scores:
        """Score a batch: the thesis's equation, or the standardized mixture."""
        return self.score_terms(batch["image"])[1]

    def score_terms(self, image: Tensor) -> tuple[Tensor, Scores]:
        """Compute the terms and the scores. (B, C, H, W) in [0, 1] -> (B, T), scores."""
        terms, scores = self.scorer.terms(self.networks, image, self.ball)
        if self.scorer.score == "mixture":
            scores["image"] = self.mix(terms)
        return terms, scores

    def mix(self, terms: Tensor) -> Tensor:
        """Return the weighted sum of terms (B, T), each standardized by the normal validation images. -> (B,)."""
        return self.scorer.mix(terms, self.term_mean, self.term_deviation)


def check_same_sizes(generator: Generator, **others: nn.Module | None) -> None:
    """Raise a ValueError unless all networks have the generator's sizes of images and latents."""
    for name, network in others.items():
        for size in ("image_size", "channels", "latent"):
            wanted = getattr(generator, size)
            if (found := getattr(network, size, wanted)) != wanted:
                raise ValueError(f"{name}.{size}={found} does not fit generator.{size}={wanted}")
