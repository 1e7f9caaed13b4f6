"""Cells of the nearest training images."""

import pytest
import torch

from adlight.features.cells import TrainingCells
from adlight.memory import retrieval
from adlight.memory.retrieval import Retrieval
from adlight.types import UserError


def training(count=9):
    known = torch.randn(count, 3, 4, 5, generator=torch.manual_seed(0)).half()
    return TrainingCells(known, torch.zeros(5), torch.ones(5))


def fitted(cells=None, **settings):
    made = Retrieval(5, **{"neighbours": 3, **settings})
    made.fit(cells or training())
    return made


def test_prediction_is_the_definition():
    query, known = torch.randn(2, 3, 4, 5, generator=torch.manual_seed(1)), training()[:]
    made = fitted(temperature=2.0)(query)
    for x, found in zip(query, made, strict=True):
        nearest = known[(known - x).square().sum((1, 2, 3)).argsort()[:3]]
        for row in range(3):
            for column in range(4):
                y = nearest[:, row, column]
                weight = torch.softmax(-2.0 * (y - x[row, column]).square().mean(1), 0)
                assert found[row, column] == pytest.approx((weight[:, None] * y).sum(0), abs=1e-5)


def test_a_training_image_is_predicted_from_the_others():
    made, own = fitted(neighbours=1), torch.tensor([4, 0])
    x = training()[own]
    assert torch.equal(made.residual(x), torch.zeros_like(x))
    left = made.residual(x, own)
    assert (left.flatten(1).norm(dim=1) > 1).all()


@pytest.mark.parametrize("padded", [False, True])
def test_cells_are_computed_in_parts(monkeypatch, padded):
    query = torch.randn(2, 3, 4, 5, generator=torch.manual_seed(1))
    if padded:
        query[0, 2:], query[1, :, 3:] = torch.nan, torch.nan
    whole = fitted()(query)
    monkeypatch.setattr(retrieval, "CELLS", 5)  # of 12
    monkeypatch.setattr(retrieval, "VALUES", 7)  # of 60
    assert torch.allclose(fitted()(query), whole, atol=1e-6, equal_nan=True)
    assert torch.equal(whole.isnan(), query.isnan())


def test_temperature():
    query = torch.randn(1, 3, 4, 5, generator=torch.manual_seed(1))
    mean, sharp = fitted(temperature=0.0)(query), fitted(temperature=1e4)(query)
    known = training()[:]
    nearest = known[(known - query).square().sum((1, 2, 3)).argsort()[:3]]
    assert mean[0] == pytest.approx(nearest.mean(0), abs=1e-5)
    best = (nearest - query).square().sum(-1).argmin(0)  # (h, w)
    assert sharp[0] == pytest.approx(nearest.gather(0, best[None, ..., None].expand(1, 3, 4, 5))[0], abs=1e-4)


def test_fewer_images_than_neighbours_are_all_used():
    x, own = training()[:2], torch.tensor([0, 1])
    assert torch.equal(fitted(neighbours=99)(x), fitted(neighbours=9)(x))
    assert torch.equal(fitted(neighbours=99)(x, own), fitted(neighbours=8)(x, own))  # not the image itself


def test_one_image_is_refused():
    with pytest.raises(UserError, match="training images"):
        fitted(training(1))
    with pytest.raises(ValueError, match="neighbours"):
        Retrieval(5, neighbours=0)
