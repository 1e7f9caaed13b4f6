import sys
from types import SimpleNamespace
from urllib.error import URLError

import lpips
import pytest
import torch
import torchvision
from torch.nn import functional as F

from adlight.detection.ssim import ssim_map
from adlight.mae.module import MAEModule
from adlight.mae.network import MaskedAutoencoder
from adlight.mae.objective import PerceptualDistance, ReconstructionLoss, l1_loss, ssim_loss
from adlight.mae.scorer import MultiMaskScorer
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


def test_equal_images():
    x, _ = pair()
    assert l1_loss(x, x) == 0
    assert abs(float(ssim_loss(x, x))) < 1e-5
    assert abs(float(ReconstructionLoss(lpips=0)(x, x)["loss"])) < 1e-5


def test_l1_by_hand():
    x, y = torch.zeros(1, 1, 2, 2), torch.tensor([[[[0.5, -0.25], [0.0, 1.0]]]])
    assert l1_loss(x, y) == pytest.approx(1.75 / 4)


def test_ssim_is_the_mean_of_the_map():
    x, y = pair()
    assert float(ssim_loss(x, y)) == pytest.approx(1 - float(ssim_map(x, y).double().mean()), abs=1e-6)


def test_weights_are_the_sums(alexnet):
    x, y = pair()
    terms = ReconstructionLoss(ssim=2.0, l1=0.5, lpips=3.0)(x, y)
    assert list(terms) == ["ssim", "l1", "lpips", "loss"]
    wanted = 2 * terms["ssim"] + 0.5 * terms["l1"] + 3 * terms["lpips"]
    torch.testing.assert_close(terms["loss"], wanted)
    torch.testing.assert_close(terms["ssim"], ssim_loss(x, y))
    torch.testing.assert_close(terms["l1"], l1_loss(x, y))
    torch.testing.assert_close(terms["lpips"], PerceptualDistance()(x, y).mean())


@pytest.mark.parametrize(
    ("weights", "names"),
    [((1, 1, 0), ["ssim", "l1"]), ((1, 0, 0), ["ssim"]), ((0, 2, 0), ["l1"]), ((0, 0, 1), ["lpips"])],
)
def test_zero_weight_computes_nothing(weights, names, alexnet, monkeypatch):
    loss = ReconstructionLoss(*weights)
    assert list(loss.weights) == names
    for name in {"ssim", "l1"} - set(names):
        monkeypatch.setattr(f"adlight.mae.objective.{name}_loss", None)
    assert list(loss(*pair())) == [*names, "loss"]


def test_zero_weight_does_not_import_lpips(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)  # any import of it fails
    assert ReconstructionLoss(lpips=0).perceptual is None
    with pytest.raises(ImportError):
        ReconstructionLoss(lpips=1)


@pytest.mark.parametrize("weights", [(0, 0, 0), (-1, 1, 0), (1, 1, -0.5)])
def test_weights_that_make_no_sense_are_refused(weights):
    with pytest.raises(ValueError, match="must be >= 0 and not all 0"):
        ReconstructionLoss(*weights)


def test_loss_is_computed_in_float32():
    x, y = pair()
    terms = ReconstructionLoss(lpips=0)(x.bfloat16(), y.bfloat16())
    assert terms["loss"].dtype == torch.float32
    torch.testing.assert_close(terms["l1"], l1_loss(x.bfloat16().float(), y.bfloat16().float()))


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
    loss = ReconstructionLoss(ssim=0, l1=0, lpips=1)
    loss(x, y.requires_grad_())["loss"].backward()
    assert y.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in loss.perceptual.network.parameters())
    assert not loss.perceptual.network.training


def test_frozen_weights_belong_to_no_module(alexnet):
    network = MaskedAutoencoder(32, 3, 8, 1, 16, 2, 1, 16, 2)
    objective = ReconstructionLoss()
    scorer = MultiMaskScorer(score="lpips")
    module = MAEModule(network, objective, scorer, torch.optim.AdamW)
    frozen = {id(p) for distance in (objective.perceptual, scorer.map) for p in distance.network.parameters()}
    assert frozen and not frozen & {id(p) for p in module.parameters()}
    assert {id(p) for p in module.parameters()} == {id(p) for p in network.parameters()}
    assert all(name.startswith(("network.", "_extra_state")) for name in module.state_dict())
    module.train()
    assert not objective.perceptual.network.training


def test_unknown_layers_are_refused():
    with pytest.raises(ValueError, match="'plain' is unknown: calibrated or raw"):
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
        ReconstructionLoss()
    text = str(caught.value)
    folder = tmp_path / "hub" / "checkpoints"
    assert "\n" not in text and str(error.args[0]) in text
    assert FILE in text and str(folder) in text and "model.objective.lpips=0" in text


@pytest.mark.parametrize("content", [b"", b"<html>sign in first</html>"])
def test_damaged_weights_name_file_folder_and_override(content, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    path = tmp_path / "hub" / "checkpoints" / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        ReconstructionLoss()
    text = str(caught.value)
    assert "\n" not in text
    assert FILE in text and str(path.parent) in text and "model.objective.lpips=0" in text
