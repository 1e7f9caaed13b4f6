"""What critic and generator minimise: WGAN-GP (thesis eq. 3-5) and the objectives that the thesis discusses beside it.

All have one interface: `critic_loss` and `generator_loss`, and `after_critic_step` for what is done to the weights.
Shapes: real, fake (B, C, H, W); losses are scalars.
"""

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from adlight.gan.networks import Critic
from adlight.rng import to_device
from adlight.types import check_range


class AdversarialObjective:
    """Base of the objectives, with Wasserstein losses.

    Args:
        drift: weight of E[D(x)^2], which keeps the scores near 0 (Karras 2018); 0 = none.
    """

    def __init__(self, drift: float = 0.0) -> None:
        check_range("objective.drift", drift)
        self.drift = drift

    def critic_loss(self, critic: nn.Module, real: Tensor, fake: Tensor, generator: Generator) -> dict[str, Tensor]:
        """Terms of a critic step; `loss` is what it descends. `generator` draws what the objective needs."""
        score_real, score_fake = critic(torch.cat([real, fake])).float().chunk(2)  # one pass over both
        terms = {"loss": self.compare(score_real, score_fake), "wasserstein": score_real.mean() - score_fake.mean()}
        if self.drift:
            terms["loss"] = terms["loss"] + self.drift * score_real.square().mean()
        return terms

    def compare(self, real: Tensor, fake: Tensor) -> Tensor:
        """Critic loss from scores (B, 1): E[D(G(z))] - E[D(x)]."""
        return fake.mean() - real.mean()

    def generator_loss(self, fake: Tensor) -> Tensor:
        """Generator loss from the scores (B, 1) of its images: -E[D(G(z))]."""
        return -fake.mean()

    def after_critic_step(self, critic: nn.Module) -> None:
        """Nothing, unless an objective bounds the weights."""


class WGANGP(AdversarialObjective):
    """Wasserstein loss with gradient penalty (thesis eq. 3-5; Gulrajani 2017).

    Args:
        penalty: its weight, lambda.
        drift: see `AdversarialObjective`.
    """

    def __init__(self, penalty: float = 10.0, drift: float = 0.0) -> None:
        super().__init__(drift)
        check_range("objective.penalty", penalty, exclusive=True)
        self.penalty = penalty

    def critic_loss(self, critic: nn.Module, real: Tensor, fake: Tensor, generator: Generator) -> dict[str, Tensor]:
        """Add lambda E[(|grad D(x^)| - 1)^2] at random points between real and fake."""
        terms = super().critic_loss(critic, real, fake, generator)
        norm = gradient_norm(critic, interpolate(real, fake, generator))  # (B,)
        penalty = (norm - 1).square().mean()
        return {
            "loss": terms["loss"] + self.penalty * penalty,
            "wasserstein": terms["wasserstein"],
            "penalty": penalty,
            "gradient_norm": norm.mean(),
        }


class WGAN(AdversarialObjective):
    """Wasserstein loss with clipped weights (Arjovsky 2017).

    Args:
        clip: largest absolute value of a critic's weight.
        drift: see `AdversarialObjective`.
    """

    def __init__(self, clip: float = 0.01, drift: float = 0.0) -> None:
        super().__init__(drift)
        check_range("objective.clip", clip, exclusive=True)
        self.clip = clip

    @torch.no_grad()
    def after_critic_step(self, critic: nn.Module) -> None:
        """Clip every weight."""
        for weight in critic.parameters():
            weight.clamp_(-self.clip, self.clip)


class LSGAN(AdversarialObjective):
    """Least squares with targets 1 for real and 0 for fake (Mao 2017)."""

    def compare(self, real: Tensor, fake: Tensor) -> Tensor:
        """0.5 E[(D(x) - 1)^2] + 0.5 E[D(G(z))^2]."""
        return 0.5 * ((real - 1).square().mean() + fake.square().mean())

    def generator_loss(self, fake: Tensor) -> Tensor:
        """0.5 E[(D(G(z)) - 1)^2]."""
        return 0.5 * (fake - 1).square().mean()


class DCGAN(AdversarialObjective):
    """Cross-entropy of a discriminator, the generator's loss unsaturated (Goodfellow 2014, Radford 2016)."""

    def compare(self, real: Tensor, fake: Tensor) -> Tensor:
        """-E[log s(D(x))] - E[log(1 - s(D(G(z))))], s the sigmoid."""
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def generator_loss(self, fake: Tensor) -> Tensor:
        """-E[log s(D(G(z)))]."""
        return F.softplus(-fake).mean()


def interpolate(real: Tensor, fake: Tensor, generator: Generator) -> Tensor:
    """x^ = e x + (1 - e) G(z) with one e ~ U[0, 1] an image, not a channel or pixel. -> (B, C, H, W)."""
    e = to_device(torch.rand(len(real), 1, 1, 1, generator=generator), real.device).to(real.dtype)  # (B, 1, 1, 1)
    return e * real + (1 - e) * fake


def gradient_norm(critic: nn.Module, image: Tensor) -> Tensor:
    """Norm of the gradient of each image's score, differentiable by the weights; in float32. (B, C, H, W) -> (B,)."""
    with torch.autocast(image.device.type, enabled=False):
        image = image.detach().float()
        if isinstance(critic, Critic):
            gradient = critic.input_gradient(image)
        else:
            image.requires_grad_()
            (gradient,) = torch.autograd.grad(critic(image).sum(), image, create_graph=True)
    return gradient.flatten(1).norm(dim=1)
