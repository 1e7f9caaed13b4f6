"""Latent inversion: search for the latent whose image is nearest to the query in image space (Schlegl 2017).

Letters: Z latent size, F critic features, R restarts.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from adlight.gan.networks import Critic, Encoder, Generator
from adlight.gan.terms import feature_distance


class Networks(NamedTuple):
    """A trained GAN in eval mode; `encoder` is None if latents are found by gradients alone."""

    generator: Generator
    critic: Critic
    encoder: Encoder | None


def invert(
    networks: Networks,
    image: Tensor,
    start: Tensor,
    *,
    steps: int,
    lr: float,
    latent_penalty: float = 0.0,
    kappa: float = 0.0,
    patience: int = 0,
) -> Tensor:
    """Find the latents whose images are nearest to `image` (B, C, H, W) in [0, 1], by Adam with frozen networks.

    Minimizes |x - G(z)|^2 / N + kappa |f(x) - f(G(z))|^2 / F + latent_penalty |z|^2 / Z for each image independently,
    from each of R initial latents `start` (R, B, Z). The search for an image ends after `patience` steps without an
    improvement of 1 %; 0 takes all steps. Works under the `inference_mode` of Lightning's test loop and leaves no
    gradient in the networks.

    Returns:
        The best latent of each image's R searches, (B, Z).
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(image.device.type, enabled=False):
        restarts, count, _ = start.shape
        query = image.detach().float().clone().repeat(restarts, 1, 1, 1)  # (R B, C, H, W)

        def loss_of(z: Tensor, query: Tensor) -> Tensor:
            generated = networks.generator(z)  # (R B, C, H, W)
            loss = (query - generated).square().flatten(1).mean(1) + latent_penalty * z.square().mean(1)
            return loss + kappa * feature_distance(networks.critic, query, generated) if kappa else loss  # (R B,)

        z, loss = adam_search(loss_of, start.detach().float().clone().flatten(0, 1), query, steps, lr, patience)
        best = loss.view(restarts, count).argmin(0)  # (B,)
        return z.view(restarts, count, -1)[best, torch.arange(count, device=best.device)]


def adam_search(
    loss_of: Callable[[Tensor, Tensor], Tensor], z: Tensor, query: Tensor, steps: int, lr: float, patience: int
) -> tuple[Tensor, Tensor]:
    """Minimize each row's loss by Adam, starting at latents `z` (B, Z), and keep each row's best latent.

    `loss_of` maps latents (B, Z) and queries (B, ...) to losses (B,). A row leaves the batch after `patience` steps
    without an improvement of 1 %; with 0, all rows stay. Adam's update (Kingma 2015, beta 0.9 and 0.999) is written
    out because torch.optim.Adam cannot drop rows.

    Returns:
        Best latents (B, Z) and their losses (B,).
    """
    best, least = z.clone(), torch.full((len(z),), math.inf, device=z.device)
    # each row's loss at its last improvement of 1 %, and the step of that improvement
    reached, since = least.clone(), torch.zeros(len(z), dtype=torch.long, device=z.device)
    first, second = torch.zeros_like(z), torch.zeros_like(z)
    row = torch.arange(len(z), device=z.device)  # the rows still in the batch
    for step in range(steps + 1):  # the last pass only evaluates the latents after `steps` updates
        z = z.detach().requires_grad_()
        loss = loss_of(z, query)  # (B',)
        (gradient,) = torch.autograd.grad(loss.sum(), z)
        with torch.no_grad():
            best[row] = torch.where((loss < least[row])[:, None], z, best[row])  # indexing by a mask would synchronize
            least[row] = torch.minimum(loss, least[row])
            progress = loss < 0.99 * reached[row]
            reached[row] = torch.where(progress, loss, reached[row])
            since[row] = since[row].masked_fill(progress, step)
            first, second = first.lerp(gradient, 0.1), second.lerp(gradient.square(), 0.001)
            size = second.sqrt() / math.sqrt(1 - 0.999 ** (step + 1)) + 1e-8
            z = z - lr / (1 - 0.9 ** (step + 1)) * first / size
            if patience and step % 10 == 9:  # not at each step, as the check synchronizes with the GPU
                active = step - since[row] < patience
                if not active.any():
                    break
                z, first, second, row, query = z[active], first[active], second[active], row[active], query[active]
    return best, least
