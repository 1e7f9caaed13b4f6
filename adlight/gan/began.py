"""Boundary equilibrium GAN (Berthelot 2017): the critic is an autoencoder; feedback control balances its losses."""

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from adlight.detection.optimization import average_over_processes
from adlight.gan.networks import Backbone, Critic, Generator, Square
from adlight.gan.objectives import AdversarialObjective
from adlight.settings import PositiveShare, checked


class AutoencoderCritic(Backbone):
    """An autoencoder that learns to reconstruct real images well and generated images badly.

    Its score is -L(x), L(x) = |x - D(x)|_1 / N (eq. 1), so that higher is more real, as for every critic. The decoder
    has the generator's layers.

    Args:
        image_size: side in pixels, see `resolution_schedule`.
        channels: 1 or 3.
        ndf: number of channels after the first layer and before the last layer of the decoder.
        hidden: size of the code between encoder and decoder.

    Attributes:
        balance: k_t, the weight of generated images; updated by the objective.
    """

    balance: Tensor

    @checked
    def __init__(
        self,
        image_size: Square = 28,
        channels: PositiveInt = 1,
        ndf: PositiveInt = 64,
        hidden: PositiveInt = 64,
    ) -> None:
        super().__init__(image_size, channels, ndf)
        self.encode = nn.Linear(self.num_features, hidden)
        self.decoder = Generator(image_size, channels, hidden, ndf)
        self.register_buffer("balance", torch.zeros(()))

    def forward(self, image: Tensor) -> Tensor:
        """Score images in [0, 1]. (B, C, H, W) -> (B, 1)."""
        reconstruction = self.decoder(self.encode(self.features(image)))  # (B, C, H, W)
        return -(image - reconstruction).float().abs().flatten(1).mean(1, keepdim=True)


class BEGAN(AdversarialObjective):
    """Keeps the autoencoder's losses L on generated and real images in a constant ratio (Berthelot 2017).

    L_D = L(x) - k_t L(G(z)),  L_G = L(G(z)),  k_{t+1} = k_t + rate (gamma L(x) - L(G(z))) in [0, 1]   (section 3.4)
    M = L(x) + |gamma L(x) - L(G(z))| measures convergence (eq. 6). k_t and M are computed from the images generated for
    the critic's step; the original takes the generator's step.

    Args:
        gamma: L(G(z)) / L(x) in equilibrium; lower values give better but less diverse images.
        rate: lambda_k, the gain of the feedback control of k_t; the critic stores k_t as `balance`.
    """

    @checked
    def __init__(self, gamma: PositiveShare = 0.5, rate: PositiveFloat = 0.001) -> None:
        super().__init__()
        self.gamma, self.rate = gamma, rate

    def critic_loss(self, critic: Critic, real: Tensor, fake: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return L(x) - k_t L(G(z)) with its terms, and update k_t for the next step."""
        if not isinstance(balance := getattr(critic, "balance", None), Tensor):
            raise ValueError(f"the objective BEGAN needs an AutoencoderCritic, got {type(critic).__name__}")
        loss_real, loss_fake = (-critic(torch.cat([real, fake])).float()).chunk(2)  # L(x), L(G(z)), (B, 1) each
        loss_real, loss_fake = loss_real.mean(), loss_fake.mean()
        k = balance.clone()
        surplus, level = average_over_processes([(self.gamma * loss_real - loss_fake).detach(), loss_real.detach()])
        balance.copy_((k + self.rate * surplus).clamp(0, 1))
        terms = {"critic": loss_real - k * loss_fake, "wasserstein": (loss_fake - loss_real).detach()}
        return terms | {"balance": k, "convergence": level + surplus.abs()}
