"""Multiresolution knowledge distillation: the loss, the map, the cloner."""

import pytest
import torch

from adlight.distillation.module import MKDModule
from adlight.distillation.network import Cloner, distillation_loss, distillation_map
from adlight.distillation.scorer import DistillationScorer
from adlight.features.backbones import Backbone


def maps(seed):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, side, side, generator=rng) for channels, side in ((3, 8), (5, 4))]


def test_the_loss_is_the_paper_s():
    taught, cloned = maps(0), maps(1)
    direction, value = distillation_loss(taught, cloned)
    for i in range(2):
        wanted_direction = wanted_value = 0.0
        for a, b in zip(taught, cloned, strict=True):
            u, v = a[i].flatten(), b[i].flatten()
            wanted_direction += 1 - float(u @ v / (u.norm() * v.norm()))
            wanted_value += sum(float(d) ** 2 for d in u - v) / len(u)
        assert float(direction[i]) == pytest.approx(wanted_direction, rel=1e-5)
        assert float(value[i]) == pytest.approx(wanted_value, rel=1e-5)
    direction, value = distillation_loss(taught, [3 * one for one in taught])
    assert direction.abs().max() < 1e-5 and value.min() > 1  # one direction, other values


def test_the_map_compares_cells():
    taught, cloned = maps(0), maps(0)
    cloned[0][:, :, 2, 5] *= -1  # of an 8 x 8 grid
    found = distillation_map(taught, cloned, torch.tensor(0.5), (16, 16))
    assert found.shape == (2, 16, 16)
    place = [divmod(int(one.flatten().argmax()), 16) for one in found]
    assert all(4 <= y < 6 and 10 <= x < 12 for y, x in place)
    a = taught[0][0, :, 2, 5]
    one_cell = distillation_map(taught[:1], cloned[:1], torch.tensor(0.5), (8, 8))
    assert float(one_cell[0, 2, 5]) == pytest.approx(2 + 0.5 * float((2 * a).square().mean()), rel=1e-5)
    assert float(one_cell[0].sum()) == pytest.approx(float(one_cell[0, 2, 5]), abs=1e-5)


def test_the_cloner_has_the_layers_shapes():
    cloner = Cloner([(3, 2), (5, 8), (7, 8)], width=4)
    assert [one.shape for one in cloner(torch.rand(2, 3, 33, 64))] == [(2, 3, 17, 32), (2, 5, 5, 8), (2, 7, 5, 8)]
    for shapes in ([(3, 14)], [(3, 8), (5, 4)]):
        with pytest.raises(ValueError, match="fine to coarse"):
            Cloner(shapes)


@pytest.fixture(scope="module")
def backbone():
    return Backbone("resnet18", ["layer1", "layer2"], "random")


def make(backbone, **settings):
    torch.manual_seed(0)
    scorer = DistillationScorer(**{key: settings.pop(key) for key in ("localization", "smoothing") if key in settings})
    return MKDModule(backbone, lambda shapes: Cloner(shapes, 4), scorer, torch.optim.Adam, **settings).eval()


def test_scores_are_the_loss_and_a_map(backbone):
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    module = make(backbone, value=0.3)
    with torch.no_grad():
        taught, cloned = module.mimic(image)
        direction, value = distillation_loss(taught, cloned)
    assert [one.shape for one in taught] == [one.shape for one in cloned] == [(2, 64, 8, 8), (2, 128, 4, 4)]
    by_gradient = make(backbone, value=0.3, localization="gradient", smoothing=0.0)
    with torch.inference_mode():
        scores, gradient = (one.score({"image": image}) for one in (module, by_gradient))
    for one in (scores, gradient):
        torch.testing.assert_close(one["image"], direction + 0.3 * value)
        assert one["pixel"].shape == (2, 32, 32)
    x = image.clone().requires_grad_()
    direction, value = distillation_loss(*module.mimic(x))
    wanted = torch.autograd.grad((direction + 0.3 * value).sum(), x)[0].abs().mean(1)
    torch.testing.assert_close(gradient["pixel"], wanted)
    assert all(p.grad is None for p in module.parameters())


def test_both_terms_begin_alike(backbone, monkeypatch):
    module, logged = make(backbone), {}
    monkeypatch.setattr("adlight.distillation.module.log_terms", lambda module, terms, count: logged.update(terms))
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    module.training_step({"image": image}, 0)
    torch.testing.assert_close(logged["direction"], logged["value"])
    first = module.first_ratio.clone()
    module.training_step({"image": image / 2}, 1)
    assert torch.equal(module.weight, first)
    assert float(make(backbone, value=0.3).weight) == pytest.approx(0.3)
