"""Residual networks: the layers of the paper, no image depends on another, the penalty is per image, they train."""

import pytest
import torch
from gan.test_networks import count, noise
from gan.tiny import ADAM, fit, make_data
from makers import fake_mvtec
from torch import nn
from torch.nn import functional as F

from adlight.gan.encoder import GANDetector
from adlight.gan.module import AdversarialModule
from adlight.gan.objectives import WGANGP, gradient_norm
from adlight.gan.residual import ResidualBlock, ResidualCritic, ResidualEncoder, ResidualGenerator
from adlight.gan.scorer import InversionScorer


def conv(inputs, outputs, side=3):
    return inputs * outputs * side**2 + outputs


def test_layers_of_the_paper():
    """CIFAR-10 of Gulrajani 2017: from 4 to 32 pixels and down to 8, blocks of 128 channels."""
    generator, critic, encoder = ResidualGenerator(32, 3, 128, 128), ResidualCritic(32, 3, 128), ResidualEncoder(32, 3)
    block = 2 * conv(128, 128)
    norms = 7 * 2 * 128
    assert count(generator) == 128 * 2048 + 2048 + 3 * block + norms + conv(128, 3)
    first = conv(3, 128) + conv(128, 128) + conv(3, 128, 1)
    assert count(critic) == first + 3 * block + 128 * 64 + 1
    assert not any(isinstance(layer, nn.GroupNorm | nn.BatchNorm2d) for layer in critic.modules())
    with torch.no_grad():
        image = generator(torch.randn(2, 128))
        assert image.shape == (2, 3, 32, 32) and image.min() >= 0 and image.max() <= 1
        maps = critic.feature_maps(image)
        assert [tuple(one.shape[1:]) for one in maps] == [(128, 16, 16), *[(128, 8, 8)] * 3]
        assert all(one.min() == 0 for one in maps)
        torch.testing.assert_close(critic(image), critic.head(maps[-1].flatten(1)))
        assert encoder(image).shape == (2, 128)


@pytest.mark.parametrize(("side", "smallest"), [(8, 4), (14, 7), (28, 7), (32, 8), (64, 8)])
def test_sizes(side, smallest):
    with torch.no_grad():
        image = ResidualGenerator(side, 1, 3, 2)(torch.randn(2, 3))
        assert image.shape == (2, 1, side, side)
        assert ResidualCritic(side, 1, 2).feature_maps(image)[-1].shape == (2, 2, smallest, smallest)


@pytest.mark.parametrize("make", [ResidualGenerator, ResidualCritic, ResidualEncoder])
def test_thirty_pixels_are_refused(make):
    with pytest.raises(ValueError, match=r"image_size=30.*32"):
        make(30)


def test_block_is_the_equation():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    same, up, down = ResidualBlock(3, 3), ResidualBlock(3, 3, 2), ResidualBlock(3, 5, 0.5, activated=False)
    torch.testing.assert_close(same(x), x + same.second(F.relu(same.first(F.relu(x)))))
    wide = up.first(x.clamp(min=0)).clamp(min=0).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(up(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3) + up.second(wide))
    full = down.shortcut(x) + down.second(F.relu(down.first(x)))
    torch.testing.assert_close(down(x), full.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)))


def test_images_do_not_depend_on_each_other():
    torch.manual_seed(0)
    generator, z = ResidualGenerator(8, 1, 3, 4).train(), torch.randn(5, 3)
    with torch.no_grad():
        torch.testing.assert_close(generator(z)[2:3], generator(z[2:3]))


def test_penalty_is_differentiated_in_the_weights():
    """The penalty's slope along its own gradient is that of finite differences."""
    torch.manual_seed(0)
    critic, image = ResidualCritic(16, 2, 4).double(), noise(3, 2, 16, 16, dtype=torch.float64)
    weights = [weight for name, weight in critic.named_parameters() if name.endswith("weight")]

    def penalty():
        return (critic.input_gradient(image).flatten(1).norm(dim=1) - 1).square().mean()

    gradients = torch.autograd.grad(penalty(), weights)
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    step, values = 1e-6, []
    for sign in (1, -2):  # to one side, then to the other
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight += sign * step * gradient
        values.append(penalty().item())
    slope = (values[0] - values[1]) / (2 * step)
    assert slope == pytest.approx(sum(float(gradient.square().sum()) for gradient in gradients), rel=1e-3)
    single = ResidualCritic(16, 2, 4)
    torch.testing.assert_close(
        gradient_norm(single, image.float()), single.input_gradient(image.float()).flatten(1).norm(dim=1)
    )


def test_they_train(tmp_path):
    data = make_data(fake_mvtec(tmp_path / "data", ("bottle",), train=20, test=2, size=8))
    torch.manual_seed(0)
    gan = AdversarialModule(ResidualGenerator(8, 1, 6, 4), ResidualCritic(8, 1, 4), WGANGP(), ADAM, ADAM, ema=0.8)
    module = GANDetector(gan, ResidualEncoder(8, 1, 6, 4), InversionScorer(), ADAM, encoder_epochs=2)
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    fit(gan, data, tmp_path)
    trainer = fit(module, data, tmp_path)
    moved = {name for name, weight in module.named_parameters() if not torch.equal(weight, before[name])}
    assert before.keys() - moved == {"gan.critic.head.bias"}  # the Wasserstein loss does not depend on it
    assert 0 <= float(trainer.callback_metrics["val/auroc"]) <= 1
