import re
from itertools import pairwise

import pytest
import torch
from torch import nn

from adlight.gan.networks import Critic, Encoder, Generator, resolution_schedule

SIZES = {  # image: smallest map, stages
    8: (4, 1),
    16: (4, 2),
    32: (4, 3),
    64: (4, 4),
    128: (4, 5),
    256: (4, 6),
    14: (7, 1),
    56: (7, 3),
    112: (7, 4),
    224: (7, 5),
    28: (4, 3),
    30: (4, 3),
}


def shapes(network, *inputs):
    """Shape of what each convolution and linear layer puts out, in their order."""
    found, hooks = [], []
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            hooks.append(layer.register_forward_hook(lambda _, __, out: found.append(tuple(out.shape))))
    with torch.no_grad():
        out = network(*inputs)
    for hook in hooks:
        hook.remove()
    return found, out


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# the thesis's own layers


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [28, 30])
def test_generator_of_the_thesis(side, channels):
    network = Generator(side, channels)
    found, image = shapes(network, torch.randn(2, 128))
    assert found == [(2, 256 * 16), (2, 128, 8, 8), (2, 64, 12, 12), (2, channels, side, side)]
    assert image.shape == (2, channels, side, side) and image.min() >= 0 and image.max() <= 1
    project, up = 128 * 4096 + 4096, (256 * 128 * 25 + 128) + (128 * 64 * 25 + 64)
    assert count(network) == project + up + 64 * channels * 64 + channels
    kernels = [(layer.kernel_size, layer.stride, layer.padding) for layer in network.up]
    last = ((8, 8), (2, 2), (1, 1) if side == 28 else (0, 0))
    assert kernels == [((5, 5), (1, 1), (0, 0))] * 2 + [last]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("side", "maps"), [(28, (14, 7, 4)), (30, (15, 8, 4))])
@pytest.mark.parametrize(("make", "outputs"), [(Critic, 1), (Encoder, 128)])
def test_critic_and_encoder_of_the_thesis(side, maps, channels, make, outputs):
    network, image = make(side, channels), noise(2, channels, side, side)
    found, out = shapes(network, image)
    assert found == [(2, width, s, s) for width, s in zip((64, 128, 256), maps, strict=True)] + [(2, outputs)]
    assert out.shape == (2, outputs)
    backbone = channels * 64 * 25 + 64 + 64 * 128 * 25 + 128 + 128 * 256 * 25 + 256
    assert count(network) == backbone + 4096 * outputs + outputs
    kinds = {type(layer) for layer in network.modules()}
    assert kinds == {make, nn.ModuleList, nn.Conv2d, nn.Linear}  # no pooling, no normalization
    features = network.features(image)
    assert features.shape == (2, 4096) and features.min() >= 0
    torch.testing.assert_close(network.feature_maps(image)[-1].flatten(1), features)
    assert [tuple(one.shape[1:]) for one in network.feature_maps(image)] == [shape[1:] for shape in found[:-1]]


def test_generator_is_relu_between_layers_and_sigmoid_at_the_end():
    network, z = Generator(28, 1, 6, 2), torch.randn(3, 6)
    x = (z @ network.project.weight.T + network.project.bias).clamp(min=0).view(3, 8, 4, 4)
    for layer in network.up[:-1]:
        x = layer(x).clamp(min=0)
    torch.testing.assert_close(network(z), 1 / (1 + (-network.up[-1](x)).exp()))


# sizes


@pytest.mark.parametrize("side", SIZES)
def test_sizes(side):
    smallest, stages = SIZES[side]
    assert resolution_schedule(side) == (smallest, stages)
    generator, critic = Generator(side, 3, 6, 2), Critic(side, 3, 2)
    with torch.no_grad():
        image = generator(torch.randn(1, 6))
        sides = [one.shape[-1] for one in critic.feature_maps(image)]
        assert critic(image).shape == (1, 1) and Encoder(side, 3, 6, 2)(image).shape == (1, 6)
    assert image.shape == (1, 3, side, side) and image.min() >= 0 and image.max() <= 1
    assert len(sides) == stages and sides[-1] == smallest
    assert all(after == -(-before // 2) for before, after in pairwise([side, *sides]))
    assert [layer.out_channels for layer in critic.down] == [2 * min(2**k, 8) for k in range(stages)]


@pytest.mark.parametrize(("side", "near"), [(29, (28, 30)), (33, (32,)), (100, (112, 128)), (4, (8,)), (1000, (512,))])
@pytest.mark.parametrize("make", [Generator, Critic, Encoder])
def test_other_sizes_name_the_nearest(side, near, make):
    with pytest.raises(ValueError, match=rf"image_size\b.*{side}") as refused:
        make(side)
    named = re.findall(r"\d+", str(refused.value).partition("nearest:")[2])
    assert len(named) == 3 and set(map(str, near)) <= set(named)


# encoder and critic in particular


def test_normalize_latent():
    torch.manual_seed(0)
    free, bound = Encoder(8, 1, 5, 2), Encoder(8, 1, 5, 2, normalize_latent=True)
    bound.load_state_dict(free.state_dict())
    image = noise(4, 1, 8, 8)
    with torch.no_grad():
        z, scaled = free(image), bound(image)
    torch.testing.assert_close(scaled.norm(dim=1), torch.full((4,), 5**0.5))
    torch.testing.assert_close(nn.functional.normalize(z), nn.functional.normalize(scaled))


@pytest.mark.parametrize("side", [8, 14, 28, 30, 32])
def test_input_gradient_is_autograd_s(side):
    torch.manual_seed(side)
    critic = Critic(side, 2, 3).double()
    image = noise(4, 2, side, side, dtype=torch.float64).requires_grad_()
    (wanted,) = torch.autograd.grad(critic(image).sum(), image, create_graph=True)
    found = critic.input_gradient(image.detach())
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-12)
    assert wanted.abs().max() > 0
    weights = [weight for name, weight in critic.named_parameters() if name.endswith("weight")]
    slopes = [
        torch.autograd.grad((gradient.flatten(1).norm(dim=1) - 1).square().mean(), weights, allow_unused=True)
        for gradient in (found, wanted)
    ]  # the penalty's: double backward
    for mine, reference in zip(*slopes, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-12)
        assert reference.abs().max() > 0
