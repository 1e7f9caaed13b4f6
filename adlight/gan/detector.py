"""Detection by GAN inversion: a trained GAN, the encoder that inverts it, and how badly it can generate an image."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from adlight.detection.detector import AnomalyDetector
from adlight.detection.optimization import EMA
from adlight.gan.inversion import Networks
from adlight.gan.networks import Critic, Encoder, Generator
from adlight.gan.scorer import TERMS, InversionScorer
from adlight.settings import Built, Decay, checked
from adlight.types import Batch, Scores


class GAN(nn.Module):
    """Generator and critic.

    Args:
        generator, critic: the networks.
        ema: decay of the moving average of the generator's weights, which is used except in the generator's own
            training; 0 for none.

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
        """The generator to use except in its own training, with averaged weights if `ema` is set."""
        return self.generator if self.ema is None else self.ema.network  # type: ignore[return-value]


class InversionDetector(AnomalyDetector):
    """Detects images that a GAN trained on normal images cannot generate.

    Args:
        gan: generator and critic.
        encoder: maps an image to its latent; None if the scorer searches by gradients alone.
        scorer: inverts the generator and scores images.

    Raises:
        ValueError: networks for different sizes of images or latents.
    """

    takes_padding = False
    term_mean: Tensor
    term_deviation: Tensor

    @checked
    def __init__(self, gan: Built[GAN], encoder: Built[Encoder] | None, scorer: Built[InversionScorer]) -> None:
        super().__init__()
        check_same_sizes(gan.generator, encoder=encoder)
        self.gan, self.encoder, self.scorer = gan, encoder, scorer
        self.register_buffer("term_mean", torch.zeros(len(TERMS)))
        self.register_buffer("term_deviation", torch.ones(len(TERMS)))

    @property
    def networks(self) -> Networks:
        """The networks used for scoring."""
        return Networks(self.gan.trained_generator, self.gan.critic, self.encoder)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the calibration results and the scorer's fitted tensors."""
        return super().get_extra_state() | {"scorer": self.scorer.fitted}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the calibration results and the scorer's fitted tensors."""
        super().set_extra_state(state)
        self.scorer.fitted = dict(state.get("scorer", {}))

    @property
    def export_blocker(self) -> str | None:
        """The reason why the method cannot be exported, if any: a graph cannot search by gradients."""
        if self.scorer.method == "encoder":
            return None
        return f"method={self.scorer.method} searches by gradients; method=encoder, one forward pass, can be exported"

    def score(self, batch: Batch) -> Scores:
        """Score a batch by the thesis's equation or the standardized mixture."""
        return self.score_terms(batch["image"])[1]

    def score_terms(self, image: Tensor) -> tuple[Tensor, Scores]:
        """Compute the terms and the scores. (B, C, H, W) in [0, 1] -> (B, T), scores."""
        terms, scores = self.scorer.terms(self.networks, image)
        if self.scorer.score == "mixture":
            scores["image"] = self.mix(terms)
        return terms, scores

    def fit_standardization(self, normal: Tensor) -> None:
        """Store each term's mean and standard deviation over normal validation images (N, T) float64, for `mix`."""
        mean = normal.mean(0)  # (T,)
        deviation = normal.std(0, unbiased=False) if len(normal) > 1 else torch.ones_like(mean)
        constant = deviation <= 1e-6 * mean.abs()  # carries no information; dividing by infinity drops the term
        self.term_mean.copy_(mean)
        self.term_deviation.copy_(deviation.masked_fill(constant, math.inf))

    def mix(self, terms: Tensor) -> Tensor:
        """Return the weighted sum of terms (B, T), each standardized by the normal validation images. -> (B,)."""
        return ((terms - self.term_mean) / self.term_deviation) @ terms.new_tensor(self.scorer.weights)


def check_same_sizes(generator: Generator, **others: nn.Module | None) -> None:
    """Raise a ValueError unless all networks have the generator's sizes of images and latents."""
    for name, network in others.items():
        for size in ("image_size", "channels", "latent"):
            expected = getattr(generator, size)
            if (found := getattr(network, size, expected)) != expected:
                raise ValueError(f"{name}.{size}={found} does not match generator.{size}={expected}")
