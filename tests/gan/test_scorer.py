import math

import numpy as np
import pytest
import torch
from gan.test_inversion import normal, plane, uniform
from torch import nn

from adlight.gan.inversion import Networks
from adlight.gan.networks import Critic, Encoder, Generator
from adlight.gan.scorer import InversionScorer
from adlight.gan.terms import cosine_distance, latent_norm, normalized_residual, unit_range
from adlight.types import UserError

METHODS = ("encoder", "gradient", "encoder+gradient")


class Nearly(nn.Module):
    """An encoder that misses the latent of a `Plane` by a known distance."""

    def __init__(self, plane, error):
        super().__init__()
        self.plane, self.error = plane, error

    def forward(self, image):
        return self.plane.inverse(image) + self.error


def gan(contrast=1.0):
    torch.manual_seed(0)
    networks = Networks(Generator(8, 1, 3, 4), Critic(8, 1, 2), Encoder(8, 1, 3, 2))
    with torch.no_grad():
        networks.generator.up[-1].weight.mul_(contrast)  # images that differ, as a trained generator's do
    return networks


def test_gradient_refines_the_encoder():
    networks, z = plane(), normal(6, 2, seed=1)
    networks = networks._replace(encoder=Nearly(networks.generator, 0.7))
    image = networks.generator(z).detach()
    torch.testing.assert_close(InversionScorer("encoder").find_latents(networks, image), z + 0.7)
    scorer = InversionScorer("encoder+gradient", steps=200, latent_penalty=0, patience=0)
    torch.testing.assert_close(scorer.find_latents(networks, image), z, atol=0.02, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["mixture", "thesis"])
def test_alone_in_a_batch_and_in_another_order(method, kind):
    networks, image = gan(contrast=30), uniform(7, 1, 8, 8)
    with torch.no_grad():  # some that the generator can show and some that it cannot take unlike numbers of steps
        image[:3] = networks.generator(normal(3, 3, seed=5))
    scorer = InversionScorer(method, kind, steps=120, patience=10, restarts=2 if method == "gradient" else 1)
    sizes = []
    counting = networks.generator.register_forward_hook(lambda _, __, made: sizes.append(len(made)))
    terms, scores = scorer.terms(networks, image)
    counting.remove()
    if method != "encoder":
        searched = sizes[:-1]  # the last are all the reconstructions
        assert searched[0] == 7 * scorer.restarts and searched == sorted(searched, reverse=True)
        assert len(set(searched)) > 2  # images left the batch more than once while others stayed
    assert terms.shape == (7, 3) and scores["image"].shape == (7,)
    assert scores["pixel"].shape == (7, 8, 8) and scores["reconstruction"].shape == image.shape
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    turned, turned_scores = scorer.terms(networks, image[order])
    torch.testing.assert_close(turned, terms[order], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(turned_scores["image"], scores["image"][order], atol=1e-4, rtol=1e-4)
    for i in range(7):
        alone, alone_scores = scorer.terms(networks, image[i : i + 1])
        torch.testing.assert_close(alone[0], terms[i], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(alone_scores["pixel"][0], scores["pixel"][i], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_networks_are_left_as_they_were(method):
    networks, image = gan(), uniform(4, 1, 8, 8)
    networks.critic.requires_grad_(False)
    weights = [weight for network in networks for weight in network.parameters()]
    before = [(weight.detach().clone(), weight.requires_grad) for weight in weights]
    scorer = InversionScorer(method, steps=12, kappa=0.5)
    free, _ = scorer.terms(networks, image)
    with torch.inference_mode():  # as in Lightning's test loop
        bound, scores = scorer.terms(networks, image.clone())
        assert not scores["image"].requires_grad
    torch.testing.assert_close(free, bound)
    assert not free.requires_grad
    for weight, (value, needed) in zip(weights, before, strict=True):
        assert weight.grad is None and weight.requires_grad == needed and torch.equal(weight, value)
    for network in networks:
        network.requires_grad_(False)  # as `Detector` does
    torch.testing.assert_close(scorer.terms(networks, image)[0], free)


def test_search_stays_in_float32_under_autocast():
    networks, image = gan(), uniform(4, 1, 8, 8)
    scorer = InversionScorer("gradient", steps=10)
    exact = scorer.find_latents(networks, image)
    with torch.autocast("cpu", torch.bfloat16):
        networks.generator(exact)
        torch.testing.assert_close(scorer.find_latents(networks, image), exact)


def test_random_starts_follow_the_seed():
    networks, image = gan(), uniform(3, 1, 8, 8)
    first, again, other = (
        InversionScorer("gradient", steps=2, seed=seed).find_latents(networks, image) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def naive_thesis(image, reconstruction, z, lam):
    """Eq. 3-7 to 3-9, one image after the other."""
    scores = []
    for q, g, latent in zip(image.double().numpy(), reconstruction.double().numpy(), z.double().numpy(), strict=True):
        wq, wg = ((x - x.min()) / (x.max() - x.min()) for x in (q, g))
        residual = np.sqrt(((wq - wg) ** 2).sum()) / q.size
        norm = -np.sqrt((latent**2).sum()) / np.sqrt(len(latent))
        scores.append(lam * residual + (1 - lam) * norm)
    return np.array(scores)


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_thesis_score_is_the_printed_equation(lam):
    networks, image = gan(), uniform(5, 1, 8, 8)
    scorer = InversionScorer("encoder", "thesis", lam=lam)
    _, scores = scorer.terms(networks, image)
    z = scorer.find_latents(networks, image)
    expected = naive_thesis(image, networks.generator(z).detach(), z, lam)
    np.testing.assert_allclose(scores["image"].numpy(), expected, rtol=1e-5)


def test_known_terms():
    z = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0] * 4])
    torch.testing.assert_close(latent_norm(z), torch.tensor([-2.5, 0.0]))
    ramp, flat = torch.arange(4.0).view(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.7)
    torch.testing.assert_close(unit_range(5 * ramp + 2), ramp / 3)
    assert torch.equal(unit_range(flat), torch.zeros_like(flat))  # a constant image divides nothing by 0
    assert float(normalized_residual(ramp, 2 * ramp + 1)) == pytest.approx(0, abs=1e-7)
    assert float(normalized_residual(ramp, flat)) == pytest.approx((1 / 9 + 4 / 9 + 1) ** 0.5 / 4)


def test_cosine_distance():
    torch.manual_seed(0)
    critic, x, y = Critic(16, 1, 2), uniform(3, 1, 16, 16), uniform(3, 1, 16, 16, seed=1)
    with torch.no_grad():
        assert cosine_distance(critic, x, x).abs().max() < 1e-6
        torch.testing.assert_close(cosine_distance(critic, x, y), cosine_distance(critic, y, x))
        expected = []
        for i in range(3):
            pairs = zip(critic.feature_maps(x), critic.feature_maps(y), strict=True)
            layers = [(p[i].flatten(), q[i].flatten()) for p, q in pairs]
            expected.append(np.mean([1 - float(p @ q / (p.norm() * q.norm())) for p, q in layers]))
        np.testing.assert_allclose(cosine_distance(critic, x, y).numpy(), expected, atol=1e-5)


def test_latents_are_pulled_into_the_ball():
    networks, image = gan(), uniform(5, 1, 8, 8)
    scorer, z = InversionScorer(reach=0.5), networks.encoder(image).detach()
    with pytest.raises(UserError, match="reach"):
        scorer.find_latents(networks, image)
    scorer.fit(networks, lambda: image.split(2))
    offset = z - z.mean(0)
    distance = offset.norm(dim=1, keepdim=True)
    torch.testing.assert_close(scorer.fitted["center"], z.mean(0))
    torch.testing.assert_close(scorer.fitted["radius"], distance.median())
    pulled = z.mean(0) + offset / distance * distance.clamp(max=distance.median())
    torch.testing.assert_close(scorer.find_latents(networks, image), pulled)


def test_mahalanobis_norm_of_latents():
    """The norm computed with NumPy from the written definition; of searched latents, the distance to the prior."""
    networks, train, image = gan(), uniform(9, 1, 8, 8), uniform(4, 1, 8, 8, seed=1)
    scorer = InversionScorer(weights={"feature": 1.0, "latent_norm": 1.0}, latent="mahalanobis")
    with pytest.raises(UserError, match="latent=mahalanobis"):
        scorer.terms(networks, image)
    scorer.fit(networks, lambda: train.split(4))
    with torch.no_grad():
        known, z = (networks.encoder(images).double().numpy() for images in (train, image))
    covariance = np.cov(known.T, bias=True)
    precision = np.linalg.inv(covariance + 0.1 * np.trace(covariance) / 3 * np.eye(3))
    offset = z - known.mean(0)
    expected = np.sqrt(np.einsum("bc,cd,bd->b", offset, precision, offset) / 3)
    terms, scores = scorer.terms(networks, image)
    np.testing.assert_allclose(terms[:, 1].numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose(scores["image"].numpy(), InversionScorer().terms(networks, image)[1]["image"].numpy())
    scorer = InversionScorer("gradient", weights={"latent_norm": 1.0}, latent="mahalanobis", steps=1)
    scorer.fit(networks, lambda: train.split(4))
    terms, _ = scorer.terms(networks, image)
    torch.testing.assert_close(terms[:, 1], scorer.find_latents(networks, image).square().mean(1).sqrt())


def test_whitened_features():
    """The Mahalanobis length of the critic's differences, computed with NumPy from the written definition."""
    networks, train, image = gan(contrast=30), uniform(9, 1, 8, 8), uniform(4, 1, 8, 8, seed=1)
    scorer = InversionScorer(feature="whitened")
    with pytest.raises(UserError, match="feature=whitened"):
        scorer.terms(networks, image)
    scorer.fit(networks, lambda: train.split(4))

    def differences(images):
        with torch.no_grad():
            shown = networks.generator(networks.encoder(images))
            maps = [networks.critic.feature_maps(x)[-1].double().numpy() for x in (images, shown)]
        a, b = (m / np.sqrt((m**2).sum((1, 2, 3), keepdims=True)) for m in maps)
        return np.moveaxis(a - b, 1, -1).reshape(len(images), -1, a.shape[1])  # (B, S * S, D)

    cells = differences(train).reshape(-1, 2)
    covariance = cells.T @ cells / len(cells)
    precision = np.linalg.inv(covariance + 0.1 * np.trace(covariance) / 2 * np.eye(2))
    expected = np.sqrt(np.einsum("bsc,cd,bsd->bs", differences(image), precision, differences(image)).mean(1) / 2)
    terms, _ = scorer.terms(networks, image)
    np.testing.assert_allclose(terms[:, 2].numpy(), expected, rtol=1e-4)


def test_residual_is_the_map_reduced():
    networks, image = gan(), uniform(4, 1, 8, 8)
    with torch.no_grad():
        error = (networks.generator(networks.encoder(image)) - image).abs()[:, 0]
    terms, scores = InversionScorer(distance="l1").terms(networks, image)
    torch.testing.assert_close(scores["pixel"], error)
    torch.testing.assert_close(terms[:, 0], error.mean((1, 2)))
    terms, scores = InversionScorer(distance="l1", reduce="max", smoothing=1.0).terms(networks, image)
    torch.testing.assert_close(terms[:, 0], scores["pixel"].amax((1, 2)))
    assert (scores["pixel"].amax((1, 2)) < error.amax((1, 2))).all()


def test_whitened_residual():
    """Its mean is the Mahalanobis distance over all pixels, computed with NumPy from the written definition."""
    networks, train, image = gan(contrast=30), uniform(9, 1, 8, 8), uniform(4, 1, 8, 8, seed=1)
    scorer = InversionScorer(distance="mahalanobis")
    with pytest.raises(UserError, match="distance=mahalanobis"):
        scorer.terms(networks, image)
    scorer.fit(networks, lambda: train.split(4))
    with torch.no_grad():
        known, found = (
            (x - networks.generator(networks.encoder(x))).double().flatten(1).numpy() for x in (train, image)
        )
    covariance = known.T @ known / 9
    precision = np.linalg.inv(covariance + 0.1 * np.trace(covariance) / 64 * np.eye(64))
    expected = np.einsum("bp,pq,bq->b", found, precision, found) / 64
    terms, scores = scorer.terms(networks, image)
    np.testing.assert_allclose(terms[:, 0].numpy(), expected, rtol=1e-4)
    torch.testing.assert_close(scores["pixel"].mean((1, 2)), terms[:, 0])


REFUSED = [
    *(({"method": "nearest"}, "method", "nearest"), ({"score": "sum"}, "score", "sum")),
    *(({"weights": {"residul": 1.0}}, "weights", "residul"), ({"feature": "l1"}, "feature", "l1")),
    *(({"distance": "psnr"}, "distance", "psnr"), ({"reduce": "min"}, "reduce", "min")),
    *(({"weights": {"residual": 0.0}}, "weights", "residual"), ({"weights": {}}, "weights", "{}")),
    *(({"weights": {"feature": math.nan}}, "feature", "nan"), ({"lam": 1.5}, "lam", "1.5")),
    *(({"topk": 0.0}, "topk", "0.0"), ({"smoothing": -1.0}, "smoothing", "-1.0"), ({"lr": 0.0}, "lr", "0.0")),
    *(({"latent_penalty": -0.1}, "latent_penalty", "-0.1"), ({"kappa": math.inf}, "kappa", "inf")),
    *(({"reach": 0.0}, "reach", "0.0"), ({"reach": 1.5}, "reach", "1.5")),
    *(({"steps": 1e2}, "steps", "100.0"), ({"restarts": 0}, "restarts", "0"), ({"patience": -1}, "patience", "-1")),
]


@pytest.mark.parametrize(("settings", "name", "value"), REFUSED, ids=str)
def test_refused(settings, name, value):
    with pytest.raises(ValueError) as refused:
        InversionScorer(**settings)
    assert name in str(refused.value) and value in str(refused.value)
