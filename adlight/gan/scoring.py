"""Scoring by latent inversion within Lightning: the score's terms are standardised by what validation finds."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adlight.detection.ema import EMA
from adlight.detection.module import AnomalyModule, gather_rows
from adlight.gan.inversion import TERMS, InversionScorer, Networks
from adlight.gan.networks import Critic, Encoder, Generator
from adlight.types import Batch, Scores


@dataclass(frozen=True)
class Terms:
    """The score terms of one validation image."""

    index: int  # in the split
    label: int
    values: list[float]  # (T,)


class InversionModule(AnomalyModule):
    """A detector that asks how far an image is from what a generator can show.

    Args:
        generator, critic: the GAN.
        encoder: finds the latent of an image; None where gradients alone do.
        scorer: inverts the generator and scores.
        ema: decay of the average of the generator's weights that scores; 0 = the generator itself does.
    """

    term_mean: Tensor
    term_deviation: Tensor

    def __init__(
        self,
        generator: Generator,
        critic: Critic,
        encoder: Encoder | None,
        scorer: InversionScorer,
        ema: float = 0.0,
    ) -> None:
        super().__init__()
        self.generator, self.critic, self.encoder, self.scorer = generator, critic, encoder, scorer
        self.ema = EMA(generator, ema) if ema else None
        self.register_buffer("term_mean", torch.zeros(len(TERMS)))
        self.register_buffer("term_deviation", torch.ones(len(TERMS)))
        self.terms: list[Terms] = []

    @property
    def networks(self) -> Networks:
        """What scores: the averaged generator if there is one."""
        generator = self.generator if self.ema is None else self.ema.network
        return Networks(generator, self.critic, self.encoder)  # type: ignore[arg-type]

    def score(self, batch: Batch) -> Scores:
        """Score a batch: the thesis's equation, or the standardised mixture."""
        self.last_terms, scores = self.scorer.terms(self.networks, batch["image"])
        if self.scorer.score == "mixture":
            scores["image"] = self.mixture(self.last_terms)
        return scores

    def mixture(self, terms: Tensor) -> Tensor:
        """Mix terms (B, T) by what validation found out about normal images. -> (B,)."""
        return self.scorer.mix(terms, self.term_mean, self.term_deviation)

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        super().on_validation_epoch_start()
        self.terms = []

    def validation_step(self, batch: Batch, batch_idx: int) -> Scores:
        """Keep the terms, which can be standardised only when all are there."""
        scores = super().validation_step(batch, batch_idx)
        self.terms += map(Terms, batch["index"].tolist(), batch["label"].tolist(), self.last_terms.tolist())
        return scores

    def on_validation_epoch_end(self) -> None:
        """Standardise by the normal images of all processes, then calibrate as every detector does."""
        if self.scorer.score == "mixture":
            normal = torch.tensor(
                [row.values for row in gather_rows(self.terms) if row.label == 0], dtype=torch.float64
            )
            mean, deviation = normal.mean(0), normal.std(0, unbiased=False)
            if len(normal) == 1:  # a single image has no spread: its terms are shifted only
                deviation = torch.ones_like(mean)
            constant = deviation <= 1e-6 * mean.abs()  # such a term says nothing: it is divided by infinity
            self.term_mean.copy_(mean)
            self.term_deviation.copy_(deviation.masked_fill(constant, math.inf))
            mine = torch.tensor([row.values for row in self.terms], device=self.device)
            self.validation_scores = [
                replace(row, score=score)
                for row, score in zip(self.validation_scores, self.mixture(mine).tolist(), strict=True)
            ]
        super().on_validation_epoch_end()
