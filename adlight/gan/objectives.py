"""Losses of critic and generator: WGAN-GP (thesis eq. 3-5) and the other objectives discussed in the thesis.

Shapes: real, fake (B, C, H, W); scores (B, 1); losses are scalars.
"""

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from adlight.gan.networks import Critic
from adlight.rng import to_device
from adlight.settings import checked


class AdversarialObjective:
    """Base class of the objectives, with Wasserstein losses.

    Args:
        drift: weight of E[D(x)^2], which keeps the scores near 0 (Karras 2018); 0 disables it.
    """

    @checked
    def __init__(self, drift: NonNegativeFloat = 0.0) -> None:
        self.drift = drift

    def critic_loss(self, critic: Critic, real: Tensor, fake: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return the critic's loss, as `critic`, and further terms to log."""
        score_real, score_fake = critic(torch.cat([real, fake])).float().chunk(2)
        loss = self.compare(score_real, score_fake)
        if self.drift:
            loss = loss + self.drift * score_real.square().mean()
        return {"critic": loss, "wasserstein": score_real.mean() - score_fake.mean()}

    def compare(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the critic's loss from its scores: E[D(G(z))] - E[D(x)]."""
        return fake.mean() - real.mean()

    def generator_loss(self, critic: Critic, fake: Tensor) -> Tensor:
        """Return the generator's loss on its images."""
        return self.fool(critic(fake).float())

    def fool(self, fake: Tensor) -> Tensor:
        """Return the generator's loss from the scores of its images: -E[D(G(z))]."""
        return -fake.mean()

    def constrain(self, critic: nn.Module) -> None:
        """Constrain the critic's weights after its step; does nothing by default."""


class WGANGP(AdversarialObjective):
    """Wasserstein loss with gradient penalty (thesis eq. 3-5; Gulrajani 2017).

    Args:
        penalty: lambda, the weight of the penalty.
        drift: see `AdversarialObjective`.
    """

    @checked
    def __init__(self, penalty: PositiveFloat = 10.0, drift: NonNegativeFloat = 0.0) -> None:
        super().__init__(drift)
        self.penalty = penalty

    def critic_loss(self, critic: Critic, real: Tensor, fake: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return E[D(G(z))] - E[D(x)] + lambda E[(|grad D(x^)| - 1)^2] and further terms to log."""
        terms = super().critic_loss(critic, real, fake, rng)
        norm = gradient_norm(critic, interpolate(real, fake, rng))  # |grad D(x^)|, (B,)
        penalty = (norm - 1).square().mean()
        return terms | {
            "critic": terms["critic"] + self.penalty * penalty,
            "penalty": penalty,
            "gradient_norm": norm.mean(),
        }


class WGAN(AdversarialObjective):
    """Wasserstein loss with clipped weights (Arjovsky 2017).

    Args:
        clip: largest absolute value of a critic's weight.
        drift: see `AdversarialObjective`.
    """

    @checked
    def __init__(self, clip: PositiveFloat = 0.01, drift: NonNegativeFloat = 0.0) -> None:
        super().__init__(drift)
        self.clip = clip

    @torch.no_grad()
    def constrain(self, critic: nn.Module) -> None:
        """Clip every weight."""
        for weight in critic.parameters():
            weight.clamp_(-self.clip, self.clip)


class LSGAN(AdversarialObjective):
    """Least squares with targets 1 for real and 0 for fake (Mao 2017)."""

    def compare(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return 0.5 E[(D(x) - 1)^2] + 0.5 E[D(G(z))^2]."""
        return 0.5 * ((real - 1).square().mean() + fake.square().mean())

    def fool(self, fake: Tensor) -> Tensor:
        """Return 0.5 E[(D(G(z)) - 1)^2]."""
        return 0.5 * (fake - 1).square().mean()


class DCGAN(AdversarialObjective):
    """Cross-entropy of a discriminator, with the non-saturating generator loss (Goodfellow 2014, Radford 2016)."""

    def compare(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return -E[log s(D(x))] - E[log(1 - s(D(G(z))))], s the sigmoid."""
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def fool(self, fake: Tensor) -> Tensor:
        """Return -E[log s(D(G(z)))]."""
        return F.softplus(-fake).mean()


def interpolate(real: Tensor, fake: Tensor, rng: torch.Generator) -> Tensor:
    """Return x^ = e x + (1 - e) G(z), one e ~ U[0, 1] per image (not per channel or pixel). -> (B, C, H, W)."""
    e = to_device(torch.rand(len(real), 1, 1, 1, generator=rng), real.device).to(real.dtype)  # (B, 1, 1, 1)
    return e * real + (1 - e) * fake


def gradient_norm(critic: Critic, image: Tensor) -> Tensor:
    """Return |grad D(x)| of each image, differentiable in the weights and always in float32. (B, C, H, W) -> (B,)."""
    with torch.autocast(image.device.type, enabled=False):
        return critic.input_gradient(image.detach().float()).flatten(1).norm(dim=1)
