from types import SimpleNamespace
from urllib.error import URLError

import lpips
import pytest
import torch
import torchvision
from torch.nn import functional as F

from adlight.detection.similarity import PerceptualDistance
from adlight.types import UserError

pytestmark = [  # lpips still asks torchvision for `pretrained`
    pytest.mark.filterwarnings("ignore:The parameter 'pretrained'"),
    pytest.mark.filterwarnings("ignore:Arguments other than a weight enum"),
]
FILE = "alexnet-owt-7be5be79.pth"


def pair(channels=3, size=64, count=2):
    generator = torch.Generator().manual_seed(0)
    shape = count, channels, size, size
    return torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)


@pytest.fixture(scope="module")
def features():
    """AlexNet's convolutions with random weights: nothing is fetched, and no 58 M classifier is made."""
    with torch.device("meta"):
        layers = torchvision.models.AlexNet().features
    layers = layers.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in layers.parameters():
        scale = 0.1 if parameter.ndim == 1 else (2 / parameter[0].numel()) ** 0.5
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    return layers


@pytest.fixture
def alexnet(features, monkeypatch):
    monkeypatch.setattr(torchvision.models, "alexnet", lambda **settings: SimpleNamespace(features=features))


@pytest.mark.parametrize("size", [64, 112])
def test_calibrated_distance_is_the_packages(alexnet, size):
    x, y = pair(size=size)
    theirs = lpips.LPIPS(net="alex", spatial=True, verbose=False).requires_grad_(False)
    distance = PerceptualDistance()(x, y)
    assert distance.shape == (2, size, size) and distance.min() > 0
    torch.testing.assert_close(distance, theirs(2 * x - 1, 2 * y - 1)[:, 0])
    scalar = lpips.LPIPS(net="alex", verbose=False).requires_grad_(False)(x, y, normalize=True)[:, 0, 0, 0]
    torch.testing.assert_close(distance.mean((1, 2)), scalar, rtol=0.02, atol=0)  # features resized, then averaged


def layer_distances(features, x, y):
    """Squared distance of AlexNet's five unit-length feature maps, each (B, H', W')."""
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    x, y = ((2 * image - 1 - shift) / scale for image in (x, y))
    found = []
    for layer in features[:12]:
        x, y = layer(x), layer(y)
        if isinstance(layer, torch.nn.ReLU):
            unit_x, unit_y = (image / (image.square().sum(1, keepdim=True).sqrt() + 1e-10) for image in (x, y))
            found.append((unit_x - unit_y).square().sum(1))
    return found


@torch.no_grad()
def test_raw_distance_is_the_unweighted_mean_over_layers(alexnet, features):
    x, y = pair()
    layers = layer_distances(features, x, y)
    assert len(layers) == 5
    resized = [F.interpolate(one[:, None], (64, 64), mode="bilinear", align_corners=False)[:, 0] for one in layers]
    raw = PerceptualDistance("raw")(x, y)
    torch.testing.assert_close(raw, torch.stack(resized).mean(0))
    equation = sum(one.mean((1, 2)) for one in layers) / 5  # eq. 13: 1/M sum_i 1/(H_i W_i) sum |.|^2
    torch.testing.assert_close(raw.mean((1, 2)), equation, rtol=0.02, atol=0)


@pytest.mark.parametrize("layers", ["calibrated", "raw"])
def test_equal_images_have_no_distance(alexnet, layers):
    x, _ = pair()
    assert PerceptualDistance(layers)(x, x).abs().max() == 0


def test_grey_images_are_taken_as_colour(alexnet):
    x, y = pair(channels=1)
    distance = PerceptualDistance()
    assert torch.equal(distance(x, y), distance(x.repeat(1, 3, 1, 1), y.repeat(1, 3, 1, 1)))


def test_gradient_reaches_the_image_and_no_weight(alexnet):
    x, y = pair()
    distance = PerceptualDistance()
    distance(x, y.requires_grad_()).mean().backward()
    assert y.grad.abs().sum() > 0 and not distance.network.training
    assert all(p.grad is None and not p.requires_grad for p in distance.network.parameters())


def test_nothing_is_drawn_from_the_run_s_random_stream(monkeypatch):
    def draw(**settings):
        torch.rand(3)
        return SimpleNamespace(features=torch.nn.Sequential(*(torch.nn.Identity() for _ in range(13))))

    monkeypatch.setattr(torchvision.models, "alexnet", draw)
    before = torch.get_rng_state()
    PerceptualDistance()
    assert torch.equal(before, torch.get_rng_state())


def test_small_images_are_refused(alexnet):
    with pytest.raises(UserError, match=r"32x32.* 28x28.*lpips=0"):
        PerceptualDistance()(*pair(size=28))


def test_unknown_layers_are_refused():
    with pytest.raises(ValueError, match=r"layers .*'plain'"):
        PerceptualDistance("plain")


@pytest.mark.parametrize(
    "error",
    [
        URLError("no route to host"),
        ConnectionResetError("reset by peer"),
        RuntimeError('invalid hash value (expected "7be5be79", got "e3b0c442")'),  # a download that was cut short
    ],
    ids=lambda error: type(error).__name__,
)
def test_missing_weights_name_file_folder_and_override(error, tmp_path, monkeypatch):
    def download(*args, **settings):
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(UserError) as caught:
        PerceptualDistance()
    text = str(caught.value)
    folder = tmp_path / "hub" / "checkpoints"
    assert "\n" not in text and str(error.args[0]) in text
    assert FILE in text and str(folder) in text and "lpips=0" in text


@pytest.mark.parametrize("content", [b"", b"<html>sign in first</html>"])
def test_damaged_weights_name_file_folder_and_override(content, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    path = tmp_path / "hub" / "checkpoints" / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        PerceptualDistance()
    text = str(caught.value)
    assert "\n" not in text
    assert FILE in text and str(path.parent) in text and "lpips=0" in text
