"""Batch norms folded into convolutions."""

import pytest
import timm
import torch
from torch import nn

from adlight.features.weights import fold_batch_norms

IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def norms(network):
    return [one for one in network.modules() if isinstance(one, nn.BatchNorm2d)]


def make(name):
    """A network with norms that do something, in eval mode."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0).eval().requires_grad_(False)
    for norm in norms(network):
        for values, low in ((norm.weight, 0.5), (norm.running_var, 0.5), (norm.bias, -0.5), (norm.running_mean, -0.5)):
            values.copy_(low + torch.rand(values.shape))
    return network


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18"])
def test_the_features_stay(name):
    network = make(name)
    folded, other = fold_batch_norms(network, IMAGE), torch.rand(2, 3, 96, 80)
    assert norms(network) and not norms(folded)
    torch.testing.assert_close(folded.forward_features(other), network.forward_features(other), rtol=1e-3, atol=5e-4)


def test_transformers_stay_as_they_are():
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True).eval()
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(fold_batch_norms(network, image).forward_features(image), network.forward_features(image))


class Shared(nn.Module):
    """Two norms that one convolution feeds: none of them can be folded."""

    def __init__(self):
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.second.bias.data.fill_(1.0)

    def forward_features(self, x):
        x = self.conv(x)
        return self.first(x) * self.second(x)


def test_what_would_change_the_features_is_not_folded():
    network = Shared().eval()
    assert fold_batch_norms(network, IMAGE) is network and len(norms(network)) == 2
