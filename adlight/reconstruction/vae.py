"""The variational autoencoder (Kingma 2014): network, evidence lower bound and scores.

Letters: B images, N = C H W values of an image, Z latent size, D channels, h x w the encoder's grid.
"""

import math
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from adlight.data.frames import Size, parse_size
from adlight.detection.maps import ReconstructionError, Reduction, Score, reduce_map, smooth
from adlight.reconstruction.networks import ConvDecoder, ConvEncoder, halved_sizes
from adlight.settings import Depth, PositiveShare, checked
from adlight.types import Scores


class VAE(nn.Module):
    """Autoencoder with q(z|x) = N(mu(x), diag s^2(x)), z ~ N(0, I), p(x|z) = N(y(z), deviation^2 I), y in [0, 1].

    Args:
        image_size: side of the images in pixels, or height and width.
        channels: C, channels of the image.
        width: number of channels of the first stage, see `ConvAutoencoder`.
        depth: number of times the grid is halved.
        latent: Z.
        deviation: standard deviation of p(x|z), for pixels in [0, 1]; lower values give the prior less weight.
    """

    @checked
    def __init__(
        self,
        image_size: Size,
        channels: PositiveInt = 3,
        width: PositiveInt = 32,
        depth: Depth = 4,
        latent: PositiveInt = 128,
        deviation: PositiveFloat = 0.1,
    ) -> None:
        super().__init__()
        self.latent, self.deviation = latent, deviation
        self.encoder = ConvEncoder(channels, width, depth)
        self.grid = halved_sizes(parse_size(image_size), depth)[-1]  # (h, w)
        values = self.encoder.widths[-1] * math.prod(self.grid)  # D h w
        self.posterior = nn.Linear(values, 2 * latent)
        self.expand = nn.Linear(latent, values)
        self.decoder = ConvDecoder(self.encoder.widths)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return mu and log s^2 of q(z|x). (B, C, H, W) in [0, 1] -> (B, Z) twice."""
        mean, log_variance = self.posterior(self.encoder(image).flatten(1)).float().chunk(2, 1)
        return mean, log_variance

    def decode(self, z: Tensor, size: torch.Size) -> Tensor:
        """Return y(z). (B, Z), (H, W) -> (B, C, H, W)."""
        return self.decoder(self.expand(z).unflatten(1, (-1, *self.grid)), size).float()

    def forward(self, image: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruct images from z = mu + s noise, or from mu without noise, and compute the terms of -ELBO.

        -ELBO = -log p(x|z) + KL(q(z|x) || N(0, I)), in nats (Kingma 2014, eq. 10 for Gaussians):
        -log p(x|z) = |x - y|^2 / (2 deviation^2) + N log(deviation sqrt(2 pi)),
        KL = 1/2 sum_j (mu_j^2 + s_j^2 - 1 - log s_j^2).

        (B, C, H, W) in [0, 1], (B, Z) -> y (B, C, H, W), -log p(x|z) (B,) and KL (B,).
        """
        mean, log_variance = self.encode(image)
        z = mean if noise is None else mean + (log_variance / 2).exp() * noise  # (B, Z)
        y = self.decode(z, image.shape[-2:])
        error = (image.float() - y).square().flatten(1)  # (B, N)
        constant = math.log(self.deviation * math.sqrt(2 * math.pi))
        surprise = error.sum(1) / (2 * self.deviation**2) + error.shape[1] * constant  # (B,)
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2  # (B,)
        return y, surprise, kl


class VAEScorer:
    """Scores images with z at the mean of q(z|x), so that scores are deterministic.

    Args:
        method: image score: `reconstruction` (error of y), `elbo` (-ELBO / N), or `gradient`, the absolute gradient of
            -ELBO with respect to the image, which is then also the map (Zimmerer 2019) and needs autograd.
        score: pixel error for the map of the other methods, see `ReconstructionError`.
        reduce, smoothing, topk: reduction of the map to the image score, see `ReconstructionError`.
    """

    @checked
    def __init__(
        self,
        method: Literal["reconstruction", "elbo", "gradient"] = "reconstruction",
        score: Score = "mse",
        reduce: Reduction = "mean",
        smoothing: NonNegativeFloat = 4.0,
        topk: PositiveShare = 0.01,
    ) -> None:
        self.method, self.error = method, ReconstructionError(score, reduce, smoothing, topk)

    def __call__(self, network: VAE, image: Tensor) -> Scores:
        """Score images (B, C, H, W) in [0, 1]."""
        if self.method == "gradient":
            y, gradient = elbo_gradient(network, image)
            magnitude = gradient.abs().mean(1)  # (B, H, W)
            pixel = smooth(magnitude, self.error.smoothing)  # (B, H, W)
            score = reduce_map(magnitude if self.error.reduce == "mean" else pixel, self.error.reduce, self.error.topk)
            return Scores(image=score, pixel=pixel, reconstruction=y)
        with torch.no_grad():
            y, surprise, kl = network(image)  # (B, C, H, W), (B,), (B,)
            score, pixel = self.error(image, y)  # (B,), (B, H, W)
        score = (surprise + kl) / image[0].numel() if self.method == "elbo" else score
        return Scores(image=score, pixel=pixel, reconstruction=y)


def elbo_gradient(network: VAE, image: Tensor) -> tuple[Tensor, Tensor]:
    """Compute y and the gradient of -ELBO at z = mu(x) with respect to the image. (B, C, H, W) -> (B, C, H, W) twice.

    Works under Lightning's `inference_mode` and leaves no gradient in the network.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(image.device.type, enabled=False):
        x = image.detach().float().clone().requires_grad_()
        y, surprise, kl = network(x)
        (gradient,) = torch.autograd.grad((surprise + kl).sum(), x)
    return y.detach(), gradient
