import math

import numpy as np
import pytest
import torch
from torch import nn

from adlight.gan import inversion
from adlight.gan.inversion import (
    InversionScorer,
    Networks,
    cosine_distance,
    feature_distance,
    invert,
    normalised_residual,
    origin_distance,
    unit_range,
)
from adlight.gan.networks import Critic, Encoder, Generator

METHODS = inversion.METHODS


class Plane(nn.Module):
    """Images 0.5 + 0.1 (z1 a + z2 b) of 4 x 4 pixels, a and b orthonormal: the nearest latent is known in closed form.

    z = 10 (x - 0.5) . (a, b)
    """

    latent = 2

    def __init__(self):
        super().__init__()
        noise = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
        self.basis = nn.Parameter(torch.linalg.qr(noise).Q)

    def forward(self, z):
        return (0.5 + 0.1 * z @ self.basis.T).view(-1, 1, 4, 4)

    def inverse(self, image):
        return 10 * (image.flatten(1) - 0.5) @ self.basis


class Nearly(nn.Module):
    """An encoder that misses the latent by a known distance."""

    latent = 2

    def __init__(self, plane, error):
        super().__init__()
        self.plane, self.error = plane, error

    def forward(self, image):
        return self.plane.inverse(image) + self.error


def plane(error=0.0):
    generator = Plane()
    return Networks(generator, Enlarging(8, 1, 2), Nearly(generator, error))


class Enlarging(Critic):
    """Features of 4 x 4 images, which our critic has no layers for."""

    def maps(self, image):
        return super().maps(image.repeat_interleave(2, 2).repeat_interleave(2, 3))


def gan(contrast=1.0):
    torch.manual_seed(0)
    networks = Networks(Generator(8, 1, 3, 4), Critic(8, 1, 2), Encoder(8, 1, 3, 2))
    with torch.no_grad():
        networks.generator.up[-1].weight.mul_(contrast)  # images that differ, as a trained generator's do
    return networks


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def weights(networks):
    return [weight for network in networks for weight in network.parameters()]


# a known latent is found again


@pytest.mark.parametrize("settings", [{}, {"restarts": 3}, {"kappa": 0.1}], ids=["plain", "restarts", "features"])
def test_gradient_finds_a_known_latent(settings):
    networks, z = plane(), normal(6, 2, seed=1)
    with torch.no_grad():
        image = networks.generator(z)
    scorer = InversionScorer("gradient", steps=400, lr=0.1, prior=0, patience=0, **settings)
    found = scorer.latents(networks, image)
    torch.testing.assert_close(found, z, atol=0.02, rtol=0)
    assert ((networks.generator(found) - image).square().mean() < 1e-7).item()


def test_gradient_refines_the_encoder():
    networks, z = plane(error=0.7), normal(6, 2, seed=1)
    with torch.no_grad():
        image = networks.generator(z)
    start = InversionScorer("encoder").latents(networks, image)
    torch.testing.assert_close(start, z + 0.7)
    found = InversionScorer("encoder+gradient", steps=200, prior=0, patience=0).latents(networks, image)
    torch.testing.assert_close(found, z, atol=0.02, rtol=0)


def test_of_an_image_off_the_plane_the_nearest_one_is_found():
    networks, image = plane(), uniform(5, 1, 4, 4)
    found = InversionScorer("gradient", steps=600, lr=0.1, prior=0, patience=0).latents(networks, image)
    torch.testing.assert_close(found, networks.generator.inverse(image).detach(), atol=0.02, rtol=0)


def test_prior_in_closed_form():
    """Of |x - G(z)|^2 / 16 + p |z|^2 / 2 the minimum is z0 / (1 + 800 p), z0 the one without a prior."""
    networks, z = plane(), normal(6, 2, seed=1)
    with torch.no_grad():
        image = networks.generator(z)
    norms = []
    for prior in (0.0, 1e-3, 1e-2):
        found = InversionScorer("gradient", steps=400, lr=0.05, prior=prior, patience=0).latents(networks, image)
        torch.testing.assert_close(found, z / (1 + 800 * prior), atol=0.02, rtol=0)
        norms.append(found.norm(dim=1))
    assert (norms[0] > norms[1]).all() and (norms[1] > norms[2]).all()


def test_real_layers_find_their_own_images():
    networks = gan(contrast=30)
    with torch.no_grad():
        image = networks.generator(normal(8, 3, seed=2))
    spread = (image - image.mean(0)).square().mean()
    found = InversionScorer("gradient", steps=300, lr=0.05, prior=0, restarts=8).latents(networks, image)
    with torch.no_grad():
        error = (networks.generator(found) - image).square().flatten(1).mean(1)
    assert (error < 0.01 * spread).all()


def test_restarts_keep_the_best_of_each_image():
    networks, points = plane(), normal(3, 2)
    with torch.no_grad():
        image = networks.generator(points[[2, 0, 1, 0, 1]] + 0.3)
    starts = points[:, None].expand(-1, 5, -1)
    settings = dict(steps=3, lr=0.05)
    each = torch.stack([invert(networks, image, start[None], **settings) for start in starts])
    errors = torch.stack([(networks.generator(z) - image).square().flatten(1).mean(1) for z in each])
    best = invert(networks, image, starts, **settings)
    assert errors.argmin(0).tolist() == [2, 0, 1, 0, 1]
    torch.testing.assert_close(best, each[errors.argmin(0), torch.arange(5)], atol=1e-5, rtol=0)


def test_a_search_never_ends_worse_than_it_began():
    networks, image = gan(), uniform(5, 1, 8, 8)
    start = normal(1, 5, 3)

    def errors(z):
        return (networks.generator(z) - image).square().flatten(1).mean(1)

    with torch.no_grad():  # the search makes its own gradients
        wild = invert(networks, image, start, steps=7, lr=50.0)
        assert (errors(wild) <= errors(start[0])).all()


def test_adam_is_torch_s():
    networks, image, start = plane(), uniform(4, 1, 4, 4), normal(4, 2)
    z = start.clone().requires_grad_()
    adam = torch.optim.Adam([z], lr=0.05)
    path = []
    for _ in range(20):
        loss = (image - networks.generator(z)).square().flatten(1).mean(1)
        path.append((loss.detach(), z.detach().clone()))
        (z.grad,) = torch.autograd.grad(loss.sum(), z)
        adam.step()
    for steps in (5, 19):  # while it falls, the best latent is the last one
        assert (path[steps][0] < path[steps - 1][0]).all()
        torch.testing.assert_close(invert(networks, image, start[None], steps=steps, lr=0.05), path[steps][1])


# early stopping


def test_patience_changes_nothing_for_images_that_converge():
    networks, image = plane(), uniform(6, 1, 4, 4)
    settings = dict(steps=600, lr=0.1, prior=1e-3)
    early, whole = (InversionScorer("gradient", patience=p, **settings).latents(networks, image) for p in (50, 0))
    torch.testing.assert_close(early, whole, atol=0.05, rtol=0)


def test_images_leave_one_by_one(monkeypatch):
    networks, sizes = plane(), []
    forward = Plane.forward
    monkeypatch.setattr(Plane, "forward", lambda self, z: sizes.append(len(z)) or forward(self, z))
    near, far = networks.generator.inverse(uniform(2, 1, 4, 4)).detach(), normal(2, 2) + 20
    image = forward(networks.generator, torch.cat([near, far])).detach()
    start = torch.cat([near, torch.zeros(2, 2)])[None]  # the first two are there already
    found = invert(networks, image, start, steps=1000, lr=0.1, patience=20)
    torch.testing.assert_close(networks.generator.inverse(image).detach(), found, atol=0.2, rtol=0)
    assert sizes[0] == 4 and 2 in sizes and len(sizes) < 1001
    assert sizes == sorted(sizes, reverse=True)
    assert torch.equal(found[:2], near)  # and their places are kept
    sizes.clear()
    invert(networks, image, start, steps=30, lr=0.1, patience=0)
    assert sizes == [4] * 31


# one image = one score


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
    before = [(weight.detach().clone(), weight.requires_grad) for weight in weights(networks)]
    scorer = InversionScorer(method, steps=12, kappa=0.5)
    free, _ = scorer.terms(networks, image)
    with torch.inference_mode():  # as in Lightning's test loop
        bound, scores = scorer.terms(networks, image.clone())
        assert not scores["image"].requires_grad
    torch.testing.assert_close(free, bound)
    assert not free.requires_grad
    for weight, (value, wanted) in zip(weights(networks), before, strict=True):
        assert weight.grad is None and weight.requires_grad == wanted and torch.equal(weight, value)
    for network in networks:
        network.requires_grad_(False)  # as `Detector` does
    torch.testing.assert_close(scorer.terms(networks, image)[0], free)


def test_search_stays_in_float32_under_autocast():
    networks, image = gan(), uniform(4, 1, 8, 8)
    scorer = InversionScorer("gradient", steps=10)
    exact = scorer.latents(networks, image)
    with torch.autocast("cpu", torch.bfloat16):
        networks.generator(exact)
        torch.testing.assert_close(scorer.latents(networks, image), exact)


def test_random_starts_follow_the_seed():
    networks, image = gan(), uniform(3, 1, 8, 8)
    first, again, other = (
        InversionScorer("gradient", steps=2, seed=seed).latents(networks, image) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


# terms and scores


def naive_thesis(image, reconstruction, z, balance):
    """Eq. 3-7 to 3-9, one image after the other."""
    scores = []
    for q, g, latent in zip(image.double().numpy(), reconstruction.double().numpy(), z.double().numpy(), strict=True):
        wq, wg = ((x - x.min()) / (x.max() - x.min()) for x in (q, g))
        residual = np.sqrt(((wq - wg) ** 2).sum()) / q.size
        origin = -np.sqrt((latent**2).sum()) / np.sqrt(len(latent))
        scores.append(balance * residual + (1 - balance) * origin)
    return np.array(scores)


@pytest.mark.parametrize("balance", [0.0, 0.3, 1.0])
def test_thesis_score_is_the_printed_equation(balance):
    networks, image = gan(), uniform(5, 1, 8, 8)
    scorer = InversionScorer("encoder", "thesis", balance=balance)
    _, scores = scorer.terms(networks, image)
    z = scorer.latents(networks, image)
    wanted = naive_thesis(image, networks.generator(z).detach(), z, balance)
    np.testing.assert_allclose(scores["image"].numpy(), wanted, rtol=1e-5)


def test_known_terms():
    z = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0] * 4])
    torch.testing.assert_close(origin_distance(z), torch.tensor([-2.5, 0.0]))
    ramp, flat = torch.arange(4.0).view(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.7)
    torch.testing.assert_close(unit_range(5 * ramp + 2), ramp / 3)
    assert torch.equal(unit_range(flat), torch.zeros_like(flat))  # a constant image divides nothing by 0
    assert float(normalised_residual(ramp, 2 * ramp + 1)) == pytest.approx(0, abs=1e-7)
    assert float(normalised_residual(ramp, flat)) == pytest.approx((1 / 9 + 4 / 9 + 1) ** 0.5 / 4)


def test_feature_distances():
    torch.manual_seed(0)
    critic, x, y = Critic(16, 1, 2), uniform(3, 1, 16, 16), uniform(3, 1, 16, 16, seed=1)
    with torch.no_grad():
        for distance in (feature_distance, cosine_distance):
            assert distance(critic, x, x).abs().max() < 1e-6 and distance(critic, x, y).min() > 0
            torch.testing.assert_close(distance(critic, x, y), distance(critic, y, x))
        a, b = critic.features(x), critic.features(y)
        torch.testing.assert_close(feature_distance(critic, x, y), (a - b).pow(2).sum(1) / a.shape[1])
        wanted = []
        for i in range(3):
            layers = [(p[i].flatten(), q[i].flatten()) for p, q in zip(critic.maps(x), critic.maps(y), strict=True)]
            wanted.append(np.mean([1 - float(p @ q / (p.norm() * q.norm())) for p, q in layers]))
        np.testing.assert_allclose(cosine_distance(critic, x, y).numpy(), wanted, atol=1e-5)


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


def test_mixture_known_values():
    scorer = InversionScorer(weights={"residual": 2.0, "origin": -1.0})
    terms = torch.tensor([[3.0, 5.0, 9.0], [1.0, 1.0, -9.0]])
    mean, deviation = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([2.0, 4.0, torch.inf])
    torch.testing.assert_close(scorer.mix(terms, mean, deviation), torch.tensor([2 * 1.0 - 1.0, 0.0]))
    only = InversionScorer(weights={"feature": 1.0})  # a term that says nothing: divided by infinity
    assert torch.equal(only.mix(terms, mean, deviation), torch.zeros(2))


REFUSED = {
    "method": ({"method": "nearest"}, r"scorer\.method 'nearest' is unknown: encoder, gradient, encoder\+gradient"),
    "score": ({"score": "sum"}, r"scorer\.score 'sum' is unknown: mixture, thesis"),
    "term": ({"weights": {"residul": 1.0}}, r"scorer\.weights 'residul' is unknown: residual, origin, feature"),
    "feature": ({"feature": "l1"}, r"scorer\.feature 'l1' is unknown: mse, cosine"),
    "distance": ({"distance": "lpips"}, r"scorer\.distance 'lpips' is unknown: mse, l1, ssim, msgms"),
    "reduce": ({"reduce": "min"}, r"scorer\.reduce 'min' is unknown: mean, max, topk"),
    "no term": ({"weights": {"residual": 0.0}}, "leave nothing to score by"),
    "no weights": ({"weights": {}}, "leave nothing to score by"),
    "balance": ({"balance": 1.5}, r"scorer\.balance.*1\.5"),
    "topk": ({"topk": 0.0}, r"scorer\.topk.*0\.0"),
    "smoothing": ({"smoothing": -1.0}, r"scorer\.smoothing.*-1\.0"),
    "steps": ({"steps": 1e2}, r"scorer\.steps.*100\.0"),
    "restarts": ({"restarts": 0}, r"restarts.*0"),
    "lr": ({"lr": 0.0}, r"scorer\.lr.*0\.0"),
    "prior": ({"prior": -0.1}, r"prior.*-0\.1"),
    "prior that is no number": ({"prior": math.nan}, r"prior.*nan"),
    "kappa without end": ({"kappa": math.inf}, r"kappa.*inf"),
    "patience": ({"patience": -1}, r"patience.*-1"),
}


@pytest.mark.parametrize(("settings", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        InversionScorer(**settings)
