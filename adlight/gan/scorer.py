"""Scores of an inverted image (thesis eq. 3-7 to 3-10; Schlegl 2019). Letters: Z latent size, R restarts, T terms."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, get_args

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from adlight.detection.maps import ReconstructionError, Reduction, Score
from adlight.gan.inversion import Networks, invert
from adlight.gan.networks import Critic
from adlight.gan.terms import (
    RESIDUAL,
    cosine_distance,
    feature_distance,
    fit_residual_whitening,
    fit_whitening,
    latent_norm,
    normalized_residual,
    unit_differences,
    whitened_distance,
    whitened_map,
)
from adlight.settings import PositiveShare, Seed, Share, checked
from adlight.types import Scores, UserError

Term = Literal["residual", "latent_norm", "feature"]
TERMS: tuple[Term, ...] = get_args(Term)


class InversionScorer:
    """Scores an image by its distance to the nearest image the GAN can generate, independently of its batch.

    What a setting needs of training images is fitted by `fit`; scoring without it raises a UserError.

    Args:
        method: `encoder` (one forward pass), `gradient` (search from random latents) or `encoder+gradient` (search
            from the encoder's latent).
        score: `thesis` (eq. 3-9 as printed) or `mixture`: the weighted sum of the terms, each standardized by its
            mean and standard deviation on normal validation images.
        weights: weights of the mixture's terms: `residual`, `latent_norm` and `feature`, the distance of the critic's
            features; a negative weight reverses a term. None takes the feature distance alone.
        lam: the thesis's lambda, the weight of the residual in `thesis`.
        feature: feature distance: `mse` of the critic's last features (Schlegl 2019), `cosine` distance of the features
            of all layers, which does not depend on their magnitude, or `whitened`, the Mahalanobis distance of the last
            features under the covariance of their differences on training images.
        latent: the mixture's `latent_norm`: `thesis`, -|z| / sqrt(Z) (eq. 3-8), or `mahalanobis`, the Mahalanobis
            distance of the encoder's latent to those of the training images; with `method=gradient`, |z| / sqrt(Z), the
            distance to the generator's prior. It is only fitted if its weight is not 0.
        distance: error for the map and the mixture's residual: `l1` (the thesis's |Q - G(z)|), `mse`, `ssim`, `msgms`,
            `lpips`, or `mahalanobis`, the error whitened by the covariance of training images' residuals.
        reduce, smoothing, topk: reduction of the map to the residual, see `ReconstructionError`.
        steps, lr: number of steps and learning rate of the search by Adam.
        latent_penalty: weight of |z|^2 / Z in the search: an unconstrained latent reconstructs anomalies too.
        kappa: weight of the feature distance in the search.
        reach: fraction of the training images' latents in the ball around their mean into which the encoder's latents
            are pulled: outside it, the generator reproduces anomalies too; None leaves latents unchanged.
        restarts: number of random latents that `gradient` starts from, the same for all images; the best is kept.
        patience: number of steps without an improvement of 1 % after which the search for an image ends; 0 takes all
            steps.
        seed: seed of the random latents.

    Attributes:
        fitted: tensors fitted to training images. For `reach`: `center` (Z,) and `radius` of the ball; for
            `latent=mahalanobis`: `latent_mean` (Z,) and `latent_whitening` (Z, Z); for `feature=whitened`: `whitening`
            (D, D), see `fit_whitening`; for `distance=mahalanobis`: see `fit_residual_whitening`.
    """

    @checked
    def __init__(
        self,
        method: Literal["encoder", "gradient", "encoder+gradient"] = "encoder",
        score: Literal["mixture", "thesis"] = "mixture",
        weights: dict[Term, float] | None = None,
        lam: Share = 0.5,
        feature: Literal["mse", "cosine", "whitened"] = "cosine",
        latent: Literal["thesis", "mahalanobis"] = "thesis",
        distance: Score | Literal["mahalanobis"] = "mse",
        reduce: Reduction = "mean",
        smoothing: NonNegativeFloat = 0.0,
        topk: PositiveShare = 0.01,
        steps: PositiveInt = 500,
        lr: PositiveFloat = 0.05,
        latent_penalty: NonNegativeFloat = 0.01,
        kappa: NonNegativeFloat = 0.0,
        reach: PositiveShare | None = None,
        restarts: PositiveInt = 1,
        patience: NonNegativeInt = 50,
        seed: Seed = 0,
    ) -> None:
        weights = {"feature": 1.0} if weights is None else weights
        if not any(weights.values()):
            raise ValueError(f"at least one of the weights must not be 0, got {weights}")
        self.method, self.score, self.lam = method, score, lam
        self.weights = [float(weights.get(term, 0.0)) for term in TERMS]
        self.feature, self.latent = feature, latent if weights.get("latent_norm") and score == "mixture" else "thesis"
        self.whitens = distance == "mahalanobis"
        if distance == "mahalanobis":
            self.error = ReconstructionError("mse", reduce, smoothing, topk, self.whitened_map)
        else:
            self.error = ReconstructionError(distance, reduce, smoothing, topk)
        penalties = {"latent_penalty": latent_penalty, "kappa": kappa}
        self.search: dict[str, Any] = {"steps": steps, "lr": lr, "patience": patience} | penalties
        self.reach, self.restarts, self.seed = reach, restarts, seed
        self.fitted: dict[str, Tensor] = {}

    @torch.no_grad()
    def fit(self, networks: Networks, read: Callable[[], Iterable[Tensor]]) -> None:
        """Fit what `reach` and the settings `mahalanobis` and `whitened` need to training images, if they are set.

        Args:
            networks: the trained networks.
            read: returns an iterator over all training images, in batches (B, C, H, W) in [0, 1].
        """
        if self.reach is not None and networks.encoder is not None:
            z = torch.cat([networks.encoder(image).float() for image in read()])  # (N, Z)
            center = z.mean(0)
            self.fitted |= {"center": center, "radius": (z - center).norm(dim=1).quantile(self.reach)}
        if self.latent == "mahalanobis" and self.method != "gradient":
            z = torch.cat([self.encode(networks, image) for image in read()])  # (N, Z)
            mean = z.mean(0)
            self.fitted |= {"latent_mean": mean, "latent_whitening": fit_whitening([(z - mean)[:, None]])}
        if self.feature == "whitened":
            pairs = self.reconstruct(networks, read())
            self.fitted["whitening"] = fit_whitening(unit_differences(networks.critic, *pair) for pair in pairs)
        if self.whitens:
            residual = torch.cat([image - shown for image, shown in self.reconstruct(networks, read())])
            self.fitted |= fit_residual_whitening(residual)

    def reconstruct(self, networks: Networks, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Return each batch with its reconstructions."""
        return ((image, networks.generator(self.find_latents(networks, image)).float()) for image in batches)

    def look_up(self, setting: str, device: torch.device, *names: str) -> list[Tensor]:
        """Return fitted tensors on a device; raise a UserError that names the setting if they are missing."""
        if not self.fitted.keys() >= set(names):
            raise UserError(f"{setting}: not fitted to training images: train again, or evaluate with this setting")
        return [self.fitted[name].to(device) for name in names]

    def find_latents(self, networks: Networks, image: Tensor) -> Tensor:
        """Invert the generator. (B, C, H, W) -> (B, Z)."""
        if self.method == "gradient":  # the same starts for every image, so that scores do not depend on the batch
            rng = torch.Generator().manual_seed(self.seed)
            starts = torch.randn(self.restarts, 1, networks.generator.latent, generator=rng).to(image.device)
            start = starts.expand(-1, len(image), -1)  # (R, B, Z)
        else:
            z = self.encode(networks, image)  # (B, Z)
            if self.method == "encoder":
                return z
            start = z[None]  # (1, B, Z)
        return invert(networks, image, start, **self.search)

    @torch.no_grad()
    def encode(self, networks: Networks, image: Tensor) -> Tensor:
        """Estimate latents by the encoder, inside the ball of `reach` if it is set. (B, C, H, W) -> (B, Z)."""
        assert networks.encoder is not None
        z = networks.encoder(image).float()  # (B, Z)
        if self.reach is None:
            return z
        center, radius = self.look_up("reach", z.device, "center", "radius")
        offset = z - center
        return center + offset * (radius / offset.norm(dim=1, keepdim=True)).clamp(max=1)

    def feature_distance(self, critic: Critic, image: Tensor, reconstruction: Tensor) -> Tensor:
        """Compare the critic's features of images and reconstructions. (B, C, H, W) twice -> (B,)."""
        if self.feature == "mse":
            return feature_distance(critic, image, reconstruction)
        if self.feature == "cosine":
            return cosine_distance(critic, image, reconstruction)
        return whitened_distance(
            critic, image, reconstruction, *self.look_up("feature=whitened", image.device, "whitening")
        )

    def whitened_map(self, image: Tensor, reconstruction: Tensor) -> Tensor:
        """Compute the error map of `distance=mahalanobis`. (B, C, H, W) twice -> (B, H, W)."""
        return whitened_map(image, reconstruction, *self.look_up("distance=mahalanobis", image.device, *RESIDUAL))

    def measure_latents(self, z: Tensor) -> Tensor:
        """Compute the mixture's norm of the latents. (B, Z) -> (B,)."""
        if self.latent == "thesis" or self.method == "gradient":
            return latent_norm(z) if self.latent == "thesis" else -latent_norm(z)
        mean, white = self.look_up("latent=mahalanobis", z.device, "latent_mean", "latent_whitening")
        return ((z - mean) @ white).square().mean(1).sqrt()

    def terms(self, networks: Networks, image: Tensor) -> tuple[Tensor, Scores]:
        """Compute the terms (B, T) and the uncalibrated scores of images (B, C, H, W) in [0, 1].

        The scores' `image` is the thesis's score (eq. 3-9) and `pixel` the smoothed map.
        """
        z = self.find_latents(networks, image)  # (B, Z)
        with torch.no_grad():
            reconstruction = networks.generator(z).float()  # (B, C, H, W)
            feature = self.feature_distance(networks.critic, image, reconstruction)  # (B,)
            residual, pixel = self.error(image, reconstruction)  # (B,), (B, H, W)
            with torch.autocast(image.device.type, enabled=False):
                norm = self.measure_latents(z)  # (B,)
                thesis = self.lam * normalized_residual(image, reconstruction) + (1 - self.lam) * latent_norm(z)
        terms = torch.stack([residual, norm, feature], 1)  # (B, T)
        return terms, Scores(image=thesis, pixel=pixel, reconstruction=reconstruction)
