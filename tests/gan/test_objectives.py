import math

import pytest
import torch
from torch import nn

from adlight.gan import objectives as wgan
from adlight.gan.networks import Critic
from adlight.gan.objectives import DCGAN, LSGAN, WGAN, WGANGP, AdversarialObjective, gradient_norm, interpolate


class Linear(nn.Module):
    """A critic whose gradient is its weight, whatever the image."""

    def __init__(self, weight, bias=0.0):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.tensor(weight)), nn.Parameter(torch.tensor(bias))

    def forward(self, image):
        return (image.flatten(1) @ self.weight + self.bias)[:, None]

    def input_gradient(self, image):
        return self.weight.expand(len(image), -1)


class Scores(nn.Module):
    """Gives the scores it was told, in their order."""

    def __init__(self, *scores):
        super().__init__()
        self.scores = torch.tensor(scores)[:, None]

    def forward(self, image):
        assert len(image) == len(self.scores)
        return self.scores


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=2, side=2, seed=0):
    return torch.rand(2, count, 1, side, side, generator=draws(seed)).unbind()


# known values: scores of real images 2 and 1, of generated ones 0.5 and -1

REAL, FAKE = (2.0, 1.0), (0.5, -1.0)


def softplus(x):
    return math.log1p(math.exp(x))


VALUES = {
    "wgan": (WGAN(), -0.25 - 1.5, 0.25),
    "drift": (AdversarialObjective(drift=0.1), -1.75 + 0.1 * (4 + 1) / 2, 0.25),
    "lsgan": (LSGAN(), 0.5 * ((1 + 0) / 2 + (0.25 + 1) / 2), 0.5 * (0.25 + 4) / 2),
    "lsgan with drift": (LSGAN(drift=1.0), 0.5 * (0.5 + 0.625) + 2.5, 0.5 * 4.25 / 2),
    "dcgan": (
        DCGAN(),
        (softplus(-2) + softplus(-1) + softplus(0.5) + softplus(-1)) / 2,
        (softplus(-0.5) + softplus(1)) / 2,
    ),
}


@pytest.mark.parametrize(("objective", "of_critic", "of_generator"), VALUES.values(), ids=VALUES.keys())
def test_known_losses(objective, of_critic, of_generator):
    real, fake = images()
    terms = objective.critic_loss(Scores(*REAL, *FAKE), real, fake, draws())
    assert float(terms["critic"]) == pytest.approx(of_critic)
    assert float(terms["wasserstein"]) == pytest.approx(1.5 + 0.25)
    assert float(objective.generator_loss(Scores(*FAKE), fake)) == pytest.approx(of_generator)


def test_real_comes_before_fake():
    real, fake = torch.full((3, 1, 2, 2), 1.0), torch.zeros(3, 1, 2, 2)
    with torch.no_grad():
        terms = AdversarialObjective().critic_loss(Linear([1.0] * 4), real, fake, draws())
    assert float(terms["wasserstein"]) == 4 and float(terms["critic"]) == -4


@pytest.mark.parametrize("norm", [0.5, 1.0, 3.0])
def test_penalty_of_a_linear_critic(norm):
    critic = Linear([norm * 0.6, 0.0, norm * 0.8, 0.0], 7.0)
    real, fake = images(5)
    terms = WGANGP(penalty=10.0, drift=0.5).critic_loss(critic, real, fake, draws())
    assert float(terms["penalty"]) == pytest.approx((norm - 1) ** 2, abs=1e-6)
    assert float(terms["gradient_norm"]) == pytest.approx(norm, rel=1e-6)
    score = critic(real)
    plain = critic(fake).mean() - score.mean() + 0.5 * score.square().mean()
    assert float(terms["critic"]) == pytest.approx(float(plain) + 10 * (norm - 1) ** 2, rel=1e-5)


def test_penalty_s_gradient_of_a_linear_critic():
    critic = Linear([0.0, 3.0, 4.0, 0.0])
    norm = gradient_norm(critic, images(3)[0])
    ((norm - 1).square().mean()).backward()  # 2 (|w| - 1) w / |w|
    torch.testing.assert_close(critic.weight.grad, 2 * 4.0 * torch.tensor([0.0, 0.6, 0.8, 0.0]))


def test_one_epsilon_an_image():
    real, fake = torch.ones(50, 3, 4, 4), torch.zeros(50, 3, 4, 4)
    e = interpolate(real, fake, draws())  # real = 1, fake = 0: the mixture is epsilon itself
    assert torch.equal(e, e[:, :1, :1, :1].expand_as(e))
    each = e[:, 0, 0, 0]
    assert each.unique().numel() == 50 and 0 <= each.min() < 0.1 and 0.9 < each.max() <= 1
    assert torch.equal(e, interpolate(real, fake, draws())) and not torch.equal(e, interpolate(real, fake, draws(1)))
    other = interpolate(torch.full_like(real, 3.0), torch.full_like(real, 1.0), draws())
    torch.testing.assert_close(other, 1 + 2 * e)


def test_penalty_looks_at_the_mixture_and_not_at_the_ends(monkeypatch):
    seen = []
    real, fake = images(4)
    norm = gradient_norm
    monkeypatch.setattr(wgan, "gradient_norm", lambda critic, image: seen.append(image) or norm(critic, image))
    WGANGP().critic_loss(Linear([1.0] * 4), real, fake, draws(3))
    assert torch.equal(seen[0], interpolate(real, fake, draws(3)))


def test_clipping():
    critic = Linear([0.5, -0.5, 0.001, -0.001], 2.0)
    WGAN(clip=0.01).constrain(critic)
    torch.testing.assert_close(critic.weight.data, torch.tensor([0.01, -0.01, 0.001, -0.001]))
    assert float(critic.bias) == pytest.approx(0.01) and critic.weight.requires_grad
    for objective in (WGANGP(), LSGAN(), DCGAN()):
        before = critic.weight.clone()
        objective.constrain(critic)
        assert torch.equal(before, critic.weight)


def test_penalty_stays_in_float32_under_autocast():
    torch.manual_seed(0)
    critic = Critic(8, 1, 2)
    image = images(4, 8)[0]
    exact = gradient_norm(critic, image)
    with torch.autocast("cpu", torch.bfloat16):
        assert critic(image).dtype == torch.bfloat16  # the weights' casts are now in autocast's cache
        assert gradient_norm(critic, image.bfloat16()).dtype == torch.float32
        same = gradient_norm(critic, image)
    assert torch.equal(same, exact)
    weights = [critic.down[0].weight, critic.head.weight]
    for slope, expected in zip(*(torch.autograd.grad(n.sum(), weights) for n in (same, exact)), strict=True):
        assert slope.dtype == torch.float32 and torch.equal(slope, expected)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        *((make, "drift") for make in (AdversarialObjective, WGANGP, WGAN, LSGAN, DCGAN)),
        (WGANGP, "penalty"),
        (WGAN, "clip"),
    ],
)
def test_numbers_out_of_range(make, name):
    with pytest.raises(ValueError, match=f"{name} .* -1"):
        make(**{name: -1})
    if name != "drift":
        with pytest.raises(ValueError, match=f"{name} .* 0"):
            make(**{name: 0})
