import pytest
import torch
from torch import nn

from adlight.gan.inversion import Networks, invert
from adlight.gan.networks import Critic, Generator
from adlight.gan.terms import feature_distance


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
        return (10 * (image.flatten(1) - 0.5) @ self.basis).detach()


class Enlarging(Critic):
    """Features of 4 x 4 images, which our critic has no layers for."""

    def feature_maps(self, image):
        return super().feature_maps(image.repeat_interleave(2, 2).repeat_interleave(2, 3))


def plane():
    return Networks(Plane(), Enlarging(8, 1, 2), None)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def errors(networks, image, z):
    with torch.no_grad():
        return (networks.generator(z) - image).square().flatten(1).mean(1)


@pytest.mark.parametrize("settings", [{}, {"kappa": 0.1}], ids=["plain", "features"])
def test_a_known_latent_is_found(settings):
    networks, z = plane(), normal(6, 2, seed=1)
    image = networks.generator(z).detach()
    found = invert(networks, image, normal(1, 6, 2), steps=400, lr=0.1, **settings)
    torch.testing.assert_close(found, z, atol=0.02, rtol=0)
    assert errors(networks, image, found).max() < 1e-6


def test_of_an_image_off_the_plane_the_nearest_one_is_found():
    networks, image = plane(), uniform(5, 1, 4, 4)
    found = invert(networks, image, normal(1, 5, 2), steps=600, lr=0.1)
    torch.testing.assert_close(found, networks.generator.inverse(image), atol=0.02, rtol=0)


@pytest.mark.parametrize("penalty", [0.0, 1e-3, 1e-2])
def test_latent_penalty_in_closed_form(penalty):
    """Of |x - G(z)|^2 / 16 + p |z|^2 / 2 the minimum is z0 / (1 + 800 p), z0 the one without a penalty."""
    networks, z = plane(), normal(6, 2, seed=1)
    image = networks.generator(z).detach()
    found = invert(networks, image, normal(1, 6, 2), steps=400, lr=0.05, latent_penalty=penalty)
    torch.testing.assert_close(found, z / (1 + 800 * penalty), atol=0.02, rtol=0)


def test_real_layers_find_their_own_images():
    torch.manual_seed(0)
    networks = Networks(Generator(8, 1, 3, 4), Critic(8, 1, 2), None)
    with torch.no_grad():
        networks.generator.up[-1].weight.mul_(30)  # images that differ, as a trained generator's do
        image = networks.generator(normal(8, 3, seed=2))
    found = invert(networks, image, normal(8, 1, 3).expand(-1, 8, -1), steps=300, lr=0.05, patience=50)
    spread = (image - image.mean(0)).square().mean()
    assert (errors(networks, image, found) < 0.01 * spread).all()


def test_restarts_keep_the_best_of_each_image():
    networks, points = plane(), normal(3, 2)
    image = networks.generator(points[[2, 0, 1, 0, 1]] + 0.3).detach()
    starts = points[:, None].expand(-1, 5, -1)
    each = torch.stack([invert(networks, image, start[None], steps=3, lr=0.05) for start in starts])
    missed = torch.stack([errors(networks, image, z) for z in each])
    assert missed.argmin(0).tolist() == [2, 0, 1, 0, 1]
    best = invert(networks, image, starts, steps=3, lr=0.05)
    torch.testing.assert_close(best, each[missed.argmin(0), torch.arange(5)], atol=1e-5, rtol=0)


def test_a_search_never_ends_worse_than_it_began():
    networks, image, start = plane(), uniform(5, 1, 4, 4), normal(1, 5, 2)
    with torch.no_grad():  # the search makes its own gradients
        wild = invert(networks, image, start, steps=7, lr=50.0)
    assert (errors(networks, image, wild) <= errors(networks, image, start[0])).all()


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


def test_patience_changes_nothing_for_images_that_converge():
    networks, image, start = plane(), uniform(6, 1, 4, 4), normal(1, 6, 2)
    early, whole = (invert(networks, image, start, steps=600, lr=0.1, patience=patience) for patience in (50, 0))
    torch.testing.assert_close(early, whole, atol=0.05, rtol=0)


def test_images_leave_one_by_one(monkeypatch):
    networks, sizes = plane(), []
    forward = Plane.forward
    monkeypatch.setattr(Plane, "forward", lambda self, z: sizes.append(len(z)) or forward(self, z))
    near, far = networks.generator.inverse(uniform(2, 1, 4, 4)), normal(2, 2) + 20
    image = forward(networks.generator, torch.cat([near, far])).detach()
    start = torch.cat([near, torch.zeros(2, 2)])[None]  # the first two are there already
    found = invert(networks, image, start, steps=1000, lr=0.1, patience=20)
    torch.testing.assert_close(networks.generator.inverse(image), found, atol=0.2, rtol=0)
    assert sizes[0] == 4 and 2 in sizes and len(sizes) < 1001
    assert sizes == sorted(sizes, reverse=True)
    assert torch.equal(found[:2], near)  # and their places are kept
    sizes.clear()
    invert(networks, image, start, steps=30, lr=0.1)
    assert sizes == [4] * 31


def test_feature_distance():
    torch.manual_seed(0)
    critic, x, y = Critic(16, 1, 2), uniform(3, 1, 16, 16), uniform(3, 1, 16, 16, seed=1)
    with torch.no_grad():
        a, b = critic.features(x), critic.features(y)
        torch.testing.assert_close(feature_distance(critic, x, y), (a - b).pow(2).sum(1) / a.shape[1])
    x.requires_grad_(), y.requires_grad_()
    feature_distance(critic, x, y).sum().backward()
    assert x.grad is None and y.grad.abs().max() > 0  # the query is given
