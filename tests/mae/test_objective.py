import sys

import pytest
import torch

from adlight.detection.similarity import PerceptualDistance, ssim_map
from adlight.mae.objective import ReconstructionLoss, l1_loss, ssim_loss


def pair(channels=3, size=64, count=2):
    generator = torch.Generator().manual_seed(0)
    shape = count, channels, size, size
    return torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)


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


def test_weights_are_the_sums(no_alexnet):
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
def test_zero_weight_computes_nothing(weights, names, no_alexnet, monkeypatch):
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


@pytest.mark.parametrize(
    ("weights", "said"),
    [((0, 0, 0), "all weights are 0"), ((-1, 1, 0), r"ssim .* >= 0"), ((1, 1, -0.5), r"lpips .* >= 0")],
)
def test_weights_that_make_no_sense_are_refused(weights, said):
    with pytest.raises(ValueError, match=said):
        ReconstructionLoss(*weights)


def test_loss_is_computed_in_float32():
    x, y = pair()
    terms = ReconstructionLoss(lpips=0)(x.bfloat16(), y.bfloat16())
    assert terms["loss"].dtype == torch.float32
    torch.testing.assert_close(terms["l1"], l1_loss(x.bfloat16().float(), y.bfloat16().float()))


def test_padding_is_no_part_of_the_loss():
    loss = ReconstructionLoss(lpips=0)
    x, y = (torch.rand(3, 3, 24, 32, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    size = torch.tensor([[24, 16], [12, 32], [24, 16]])
    alone = [loss(x[i : i + 1, :, :h, :w], y[i : i + 1, :, :h, :w]) for i, (h, w) in enumerate(size.tolist())]
    for name, value in loss(x, y, size).items():
        torch.testing.assert_close(value, torch.stack([one[name] for one in alone]).mean())
