"""Latent inversion and the scores that come of it (thesis eq. 3-7 to 3-10; Schlegl 2017 and 2019).

The latent is wanted whose image is nearest to the query, in image space. Letters: Z latent size, F critic features,
R restarts, T score terms.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from adlight.detection.maps import MAPS, reduce_map, smooth
from adlight.gan.networks import Critic, Encoder
from adlight.gan.networks import Generator as ImageGenerator
from adlight.types import Scores, check_integer, check_range

TERMS = ("residual", "origin", "feature")
METHODS = ("encoder", "gradient", "encoder+gradient")


class Networks(NamedTuple):
    """A trained GAN, all of it in eval mode; the encoder may be missing where gradients do the search."""

    generator: ImageGenerator
    critic: Critic
    encoder: Encoder | None


class InversionScorer:
    """Scores an image by how far the nearest generated one is; one image = one score, whatever its batch.

    Args:
        method: `encoder` (one forward pass), `gradient` (search from random latents) or `encoder+gradient` (search
            from the encoder's answer).
        score: `thesis` (eq. 3-9 as printed) or `mixture`: the weighted sum of the terms, each standardised by its
            mean and deviation on normal validation images.
        weights: of the mixture's terms `residual`, `origin` (-|z|/sqrt(Z), eq. 3-8) and `feature`, the distance in
            the critic's features; negative ones turn a term round.
        feature: `mse` of the critic's last features (Schlegl 2019), or `cosine` of the features of all its layers,
            which counts a difference in proportion to what there is.
        balance: the thesis's lambda: share of the residual in `thesis`.
        distance: the mixture's residual and the map: `l1` (the thesis's |Q - G(z)|), `mse`, `ssim` or `msgms`.
        reduce: `mean` of the map, or `max` or `topk` of the smoothed map, for the mixture's residual.
        smoothing: sigma of the Gaussian over the map, in pixels; 0 = none.
        topk: share of the pixels that `topk` averages.
        steps, lr: of the search by Adam.
        prior: weight of |z|^2 / Z in the search: an unconstrained latent reconstructs anomalies too.
        kappa: weight of the feature distance in the search.
        restarts: how many random latents `gradient` starts from, the same for all images; the best is kept.
        patience: a search ends for an image that has not improved by 1 % in so many steps; 0 = never.
        seed: of the random latents.

    Raises:
        ValueError: an unknown name, or a number out of range.
    """

    def __init__(
        self,
        method: str = "encoder",
        score: str = "mixture",
        weights: dict[str, float] | None = None,
        balance: float = 0.5,
        feature: str = "cosine",
        distance: str = "mse",
        reduce: str = "mean",
        smoothing: float = 0.0,
        topk: float = 0.01,
        steps: int = 500,
        lr: float = 0.05,
        prior: float = 0.01,
        kappa: float = 0.0,
        restarts: int = 1,
        patience: int = 50,
        seed: int = 0,
    ) -> None:
        weights = {"feature": 1.0} if weights is None else weights
        for name, value, known in (
            ("method", method, METHODS),
            ("score", score, ("mixture", "thesis")),
            ("feature", feature, tuple(FEATURES)),
            ("distance", distance, tuple(MAPS)),
            ("reduce", reduce, ("mean", "max", "topk")),
            *(("weights", term, TERMS) for term in weights),
        ):
            if value not in known:
                raise ValueError(f"scorer.{name} {value!r} is unknown: {', '.join(known)}")
        if not any(weights.values()):
            raise ValueError(f"scorer.weights {weights} leave nothing to score by")
        for term, weight in weights.items():
            check_range(f"scorer.weights.{term}", weight, -math.inf)
        check_range("scorer.balance", balance, 0, 1)
        check_range("scorer.topk", topk, 0, 1, exclusive=True)
        check_range("scorer.lr", lr, exclusive=True)
        check_range("scorer.smoothing", smoothing)
        check_range("scorer.prior", prior)
        check_range("scorer.kappa", kappa)
        check_integer("scorer.steps", steps, 1)
        check_integer("scorer.restarts", restarts, 1)
        check_integer("scorer.patience", patience, 0)
        self.method, self.score, self.balance = method, score, balance
        self.weights = [float(weights.get(term, 0.0)) for term in TERMS]
        self.feature_distance = FEATURES[feature]
        self.map, self.reduce, self.smoothing, self.topk = MAPS[distance], reduce, smoothing, topk
        self.search = {"steps": steps, "lr": lr, "prior": prior, "kappa": kappa, "patience": patience}
        self.restarts, self.seed = restarts, seed

    def latents(self, networks: Networks, image: Tensor) -> Tensor:
        """Invert the generator. (B, C, H, W) -> (B, Z)."""
        if self.method == "gradient":
            # the same starts for every image: a score depends on neither batch, process nor place in the data set
            draws = Generator().manual_seed(self.seed)
            starts = torch.randn(self.restarts, 1, networks.generator.latent, generator=draws).to(image.device)
            start = starts.expand(-1, len(image), -1)  # (R, B, Z)
        else:
            assert networks.encoder is not None
            with torch.no_grad():
                start = networks.encoder(image).float()[None]  # (1, B, Z)
        if self.method == "encoder":
            return start[0]
        return invert(networks, image, start, **self.search)  # type: ignore[arg-type]

    def terms(self, networks: Networks, image: Tensor) -> tuple[Tensor, Scores]:
        """Everything that does not depend on a calibration. (B, C, H, W) in [0, 1] -> (B, T) and scores.

        The scores' `image` is the thesis's, `pixel` the smoothed map.
        """
        z = self.latents(networks, image)  # (B, Z)
        with torch.no_grad():
            reconstruction = networks.generator(z).float()  # (B, C, H, W)
            feature = self.feature_distance(networks.critic, image, reconstruction)  # (B,)
            with torch.autocast(image.device.type, enabled=False):
                error = self.map(image, reconstruction)  # (B, H, W)
                pixel = smooth(error, self.smoothing)  # (B, H, W)
                residual = reduce_map(error if self.reduce == "mean" else pixel, self.reduce, self.topk)  # (B,)
                origin = origin_distance(z)  # (B,)
                thesis = self.balance * normalised_residual(image, reconstruction) + (1 - self.balance) * origin
        terms = torch.stack([residual, origin, feature], 1)  # (B, T)
        return terms, Scores(image=thesis, pixel=pixel, reconstruction=reconstruction)

    def mix(self, terms: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
        """Weighted sum of standardised terms. (B, T), (T,), (T,) -> (B,)."""
        return ((terms - mean) / deviation) @ terms.new_tensor(self.weights)


def normalised_residual(image: Tensor, reconstruction: Tensor) -> Tensor:
    """L_n = |w(Q) - w(G(z))| / N, w scaling each image to [0, 1] (eq. 3-7). (B, C, H, W) twice -> (B,)."""
    return (unit_range(image) - unit_range(reconstruction)).flatten(1).norm(dim=1) / image[0].numel()


def unit_range(x: Tensor) -> Tensor:
    """w(x) = (x - min x) / (max x - min x), image by image; a constant image becomes 0. (B, C, H, W) -> same."""
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return (x - low) / (high - low).clamp(min=torch.finfo(x.dtype).tiny)


def origin_distance(z: Tensor) -> Tensor:
    """L_o = -|z| / sqrt(Z) (eq. 3-8). (B, Z) -> (B,)."""
    return -z.norm(dim=1) / math.sqrt(z.shape[1])


def feature_distance(critic: Critic, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference of the critic's last features (Schlegl 2019). (B, C, H, W) twice -> (B,).

    Gradients go through `y` alone: `x` is what was asked for.
    """
    with torch.no_grad():
        wanted = critic.features(x).float()
    return (wanted - critic.features(y).float()).square().mean(1)


def cosine_distance(critic: Critic, x: Tensor, y: Tensor) -> Tensor:
    """1 - cosine of the critic's features, mean over its layers. (B, C, H, W) twice -> (B,).

    Taken as half the square of the unit vectors' difference: 1 - cos would lose the digits that small angles need.
    """
    units = ([F.normalize(one.float().flatten(1)) for one in critic.maps(image)] for image in (x, y))
    return torch.stack([(a - b).square().sum(1) / 2 for a, b in zip(*units, strict=True)]).mean(0)


FEATURES = {"mse": feature_distance, "cosine": cosine_distance}


def invert(
    networks: Networks,
    image: Tensor,
    start: Tensor,
    *,
    steps: int,
    lr: float,
    prior: float = 0.0,
    kappa: float = 0.0,
    patience: int = 0,
) -> Tensor:
    """Latents whose images are nearest to the given ones, by Adam with frozen networks, the best latent met kept.

    Minimises |x - G(z)|^2 / N + kappa |f(x) - f(G(z))|^2 / F + prior |z|^2 / Z for each image on its own; the whole
    batch and its restarts move at once, and images that no longer improve leave it. Works within Lightning's test
    loop, which is under `inference_mode`; no gradient is left in the networks.

    Args:
        networks: generator and critic.
        image: (B, C, H, W) in [0, 1].
        start: (R, B, Z).
        steps: of Adam.
        lr: its learning rate.
        prior: weight, see above.
        kappa: weight, see above.
        patience: steps without an improvement of 1 % after which an image is done; 0 = all steps are made.

    Returns:
        (B, Z), of the R searches of an image the best.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(image.device.type, enabled=False):
        restarts, count, _ = start.shape
        query = image.detach().float().clone().repeat(restarts, 1, 1, 1)  # (R B, C, H, W)

        def loss_of(z: Tensor, query: Tensor) -> Tensor:
            made = networks.generator(z)
            loss = (query - made).square().flatten(1).mean(1) + prior * z.square().mean(1)
            return loss + kappa * feature_distance(networks.critic, query, made) if kappa else loss  # (R B,)

        z, loss = descend(loss_of, start.detach().float().clone().flatten(0, 1), query, steps, lr, patience)
        best = loss.view(restarts, count).argmin(0)  # (B,)
        return z.view(restarts, count, -1)[best, torch.arange(count, device=best.device)]


def descend(
    loss_of: Callable[[Tensor, Tensor], Tensor], z: Tensor, query: Tensor, steps: int, lr: float, patience: int
) -> tuple[Tensor, Tensor]:
    """Minimise each row's loss by Adam; rows that stand still are taken out of the batch. -> best (B, Z), loss (B,).

    torch.optim.Adam cannot drop rows, hence its update written out (Kingma 2015, beta 0.9 and 0.999).
    """
    best, least = z.clone(), torch.full((len(z),), math.inf, device=z.device)
    reached, since = least.clone(), torch.zeros(len(z), dtype=torch.long, device=z.device)
    first, second = torch.zeros_like(z), torch.zeros_like(z)
    row = torch.arange(len(z), device=z.device)  # which rows are still searched for
    for step in range(steps + 1):
        z = z.detach().requires_grad_()
        loss = loss_of(z, query)  # (B',)
        (gradient,) = torch.autograd.grad(loss.sum(), z)
        with torch.no_grad():
            best[row] = torch.where((loss < least[row])[:, None], z, best[row])  # a mask as index would wait for a GPU
            least[row] = torch.minimum(loss, least[row])
            progress = loss < 0.99 * reached[row]
            reached[row] = torch.where(progress, loss, reached[row])
            since[row] = since[row].masked_fill(progress, step)
            first, second = first.lerp(gradient, 0.1), second.lerp(gradient.square(), 0.001)
            size = second.sqrt() / math.sqrt(1 - 0.999 ** (step + 1)) + 1e-8
            z = z - lr / (1 - 0.9 ** (step + 1)) * first / size
            if patience and step % 10 == 9:  # a look costs a synchronisation with the GPU
                on = step - since[row] < patience
                if not on.any():
                    break
                z, first, second, row, query = z[on], first[on], second[on], row[on], query[on]
    return best, least
