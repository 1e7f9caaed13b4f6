"""Autoencoders of the papers' tables: what passes through them, and what they minimize."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate, max_pool2d

from adlight.detection.maps import ReconstructionError
from adlight.reconstruction.dagan import DAGANModule, distance
from adlight.reconstruction.networks import ConvAutoencoder, UNet, halved_sizes
from adlight.reconstruction.vae import VAE, VAEScorer, elbo_gradient

NETWORKS = {
    "unet": lambda: UNet(3, width=4, depth=3),
    "without skips": lambda: UNet(3, width=4, depth=3, skips=False),
    "conv": lambda: ConvAutoencoder(3, width=4, depth=3, latent=2),
}


def images(count=2, size=(16, 16), seed=0):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def made(make):
    torch.manual_seed(0)
    return make()


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("size", [(16, 16), (17, 29), (8, 24)])
def test_a_reconstruction_has_the_image_s_size_and_range_and_is_its_own(make, size):
    network, image = made(make), images(3, size)
    y = network(image)
    assert y.shape == image.shape and y.min() >= 0 and y.max() <= 1
    torch.testing.assert_close(network(image[1:2]), y[1:2])  # of no other image's
    y.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize(("skips", "passes"), [(True, True), (False, False)])
def test_only_skips_pass_the_bottleneck(skips, passes):
    """A dead bottleneck leaves a U-Net what its skips show."""
    network = made(lambda: UNet(3, width=4, depth=2, skips=skips))
    network.down[-1].register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    one, other = images(1), images(1, seed=1)
    assert torch.equal(network(one), network(other)) != passes


def test_the_unet_layer_by_layer():
    network, x = made(lambda: UNet(3, width=4, depth=2)), images(2, (12, 10))
    first = network.stem(x)
    second = network.down[0](max_pool2d(first, 2))
    third = network.down[1](max_pool2d(second, 2, ceil_mode=True))
    assert [one.shape[1:] for one in (first, second, third)] == [(4, 12, 10), (8, 6, 5), (16, 3, 3)]
    y = network.up[0](torch.cat([interpolate(third, (6, 5)), second], 1))
    y = network.up[1](torch.cat([interpolate(y, (12, 10)), first], 1))
    torch.testing.assert_close(network(x), torch.sigmoid(network.head(y)))
    assert [type(one) for one in network.stem] == [nn.Conv2d, nn.GroupNorm, nn.ReLU] * 2


def test_grids_halve_rounded_up():
    assert halved_sizes((30, 17), 3) == [(30, 17), (15, 9), (8, 5), (4, 3)]
    network = ConvAutoencoder(1, width=4, depth=3, latent=2)
    assert network.squeeze(network.encoder(torch.rand(1, 1, 30, 17))).shape == (1, 2, 4, 3)


# the evidence lower bound


def tiny_vae():
    return made(lambda: VAE((16, 12), 3, width=4, depth=2, latent=5, deviation=0.2))


def test_the_bound_is_that_of_the_distributions():
    network, x = tiny_vae(), images(2, (16, 12))
    noise = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    y, surprise, kl = network(x, noise)
    mean, log_variance = network.encode(x)
    q = torch.distributions.Normal(mean, (log_variance / 2).exp())
    z = mean + q.scale * noise
    torch.testing.assert_close(y, network.decode(z, x.shape[-2:]))
    p = torch.distributions.Normal(y, 0.2)
    torch.testing.assert_close(surprise, -p.log_prob(x).sum((1, 2, 3)))
    prior = torch.distributions.Normal(torch.zeros(5), torch.ones(5))
    torch.testing.assert_close(kl, torch.distributions.kl_divergence(q, prior).sum(1))
    torch.testing.assert_close(network(x)[0], network.decode(mean, x.shape[-2:]))  # without noise from the mean


def test_each_method_scores_what_it_says():
    network, x = tiny_vae(), images(3, (16, 12))
    y, surprise, kl = network(x)
    scores = {
        method: VAEScorer(method, "l1", "max", 1.0)(network, x) for method in ("reconstruction", "elbo", "gradient")
    }
    for name in ("reconstruction", "elbo"):
        torch.testing.assert_close(scores[name]["reconstruction"], y.detach())
    torch.testing.assert_close(scores["elbo"]["image"], (surprise + kl).detach() / (3 * 16 * 12))
    torch.testing.assert_close(scores["reconstruction"]["image"], scores["elbo"]["pixel"].amax((1, 2)))
    torch.testing.assert_close(scores["gradient"]["image"], scores["gradient"]["pixel"].amax((1, 2)))
    sharp = VAEScorer("gradient", smoothing=0.0)(network, x)
    torch.testing.assert_close(sharp["pixel"], elbo_gradient(network, x)[1].abs().mean(1))
    torch.testing.assert_close(sharp["image"], sharp["pixel"].mean((1, 2)))


def test_the_gradient_is_that_of_finite_differences_also_in_inference_mode():
    network, x = tiny_vae().double(), images(1, (16, 12)).double()

    def bound(image):
        mean, log_variance = network.posterior(network.encoder(image).flatten(1)).chunk(2, 1)
        y = network.decoder(network.expand(mean).unflatten(1, (-1, *network.grid)), image.shape[-2:])
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
        return (image - y).square().sum() / (2 * 0.2**2) + kl

    step = torch.zeros_like(x)
    step[0, 1, 7, 5] = 1e-6
    with torch.no_grad():
        wanted = float((bound(x + step) - bound(x - step)) / 2e-6)
    network, x = network.float(), x.float()
    with torch.inference_mode():
        _, gradient = elbo_gradient(network, x)
    assert float(gradient[0, 1, 7, 5]) == pytest.approx(wanted, rel=1e-3)
    assert all(p.grad is None for p in network.parameters())


# two autoencoders against each other


class Fixed(nn.Module):
    """Multiplies an image by what it was told."""

    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, image):
        return self.factor * image


def test_dagan_s_losses():
    """D(x) = x / 2 and G(x) = x / 4, of one image of ones and one of zeros."""
    module = DAGANModule(Fixed(0.25), Fixed(0.5), ReconstructionError(), torch.optim.Adam, 2.0, 40.0, 3.0)
    x = torch.stack([torch.ones(3, 2, 2), torch.zeros(3, 2, 2)])
    y = module.generator(x)
    adversarial = (0.5 - 0.125) / 2  # |D(x) - D(G(x))|, mean over both
    of_critic = module.discriminator_loss(x, y.detach())
    assert of_critic["discriminator"].item() == pytest.approx(3 * 0.5 / 2 - 2 * adversarial)
    of_generator = module.generator_loss(x, y)
    assert of_generator["generator"].item() == pytest.approx(2 * adversarial + 40 * 0.75 / 2)
    of_generator["generator"].backward()
    assert math.isfinite(module.generator.factor.grad) and float(module.generator.factor.grad) < 0  # towards x
    torch.testing.assert_close(distance(x, y), torch.tensor([0.75, 0.0]))
    naive = [float((a - b).square().mean().sqrt()) for a, b in zip(images(4), images(4, seed=1), strict=True)]
    assert distance(images(4), images(4, seed=1)).tolist() == pytest.approx(naive)
