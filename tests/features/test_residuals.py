"""Residuals of predictors, measured by normal images."""

import pytest
import torch

from adlight.features.cells import TrainingCells, channel_statistics
from adlight.features.predictor import Predictor
from adlight.features.residuals import ResidualMap

C = 4
CENTERS = torch.zeros(1, C)


class Nothing(Predictor):
    """Predicts zeros: the residual is the cell."""

    def forward(self, cells):
        return torch.zeros_like(cells)


class Plain(Nothing):
    whitened = False


class Trained(Nothing):
    trained = True


def cells(count=3, seed=0, scale=1.0):
    return scale * torch.randn(count, 5, 6, C, generator=torch.manual_seed(seed))


def fitted(predictors, held_out, training=()):
    made = ResidualMap(predictors, C)
    made.fit(predictors, CENTERS, held_out, iter(training))
    return made


def test_one_predictor_has_mean_one_on_held_out_normals():
    predictors, held_out = {"plain": Plain()}, [cells(seed=i) for i in range(3)]
    made = fitted(predictors, held_out)
    together = torch.cat(held_out)
    assert made(together, {"plain": together}).mean().item() == pytest.approx(1.0, rel=1e-5)


def test_an_ensemble_weighs_its_members_alike():
    predictors, held_out = {"small": Plain(), "white": Nothing()}, [cells(seed=i) for i in range(3)]
    made, query = fitted(predictors, held_out), cells(2, seed=9)
    alone = [fitted({name: one}, held_out)(query, {name: query}) for name, one in predictors.items()]
    assert made(query, {"small": query, "white": query}) == pytest.approx(alone[0] + alone[1], rel=1e-5)


def test_a_fold_is_measured_without_itself():
    held_out = [cells(seed=0, scale=100.0), cells(seed=1), cells(seed=2)]
    made = fitted({"white": Nothing()}, held_out)
    without = fitted({"white": Nothing()}, held_out[1:])
    query = cells(2, seed=9)
    mean = query.mean((1, 2))
    first = made.folds[0].length("white", mean, query.flatten(1, 2))
    assert first == pytest.approx(without.length("white", mean, query.flatten(1, 2)), rel=1e-4)
    assert (first > 10 * made.length("white", mean, query.flatten(1, 2))).all()


def test_training_images_join():
    held_out, more = [cells(2, 0), cells(2, 1)], cells(4, 5)
    made = fitted({"white": Nothing()}, held_out, [(more, torch.arange(4))])
    whole = fitted({"white": Nothing()}, [*held_out, more])
    assert made.whitening["white"].weight.abs() == pytest.approx(whole.whitening["white"].weight.abs(), abs=1e-4)


def test_plain_lengths_need_no_training_images():
    made = fitted({"plain": Plain()}, [cells(seed=0)], (pytest.fail("drawn in vain") for _ in range(1)))
    query = cells(20, seed=1)
    assert made(query, {"plain": query}) == pytest.approx(query.square().mean(-1).sqrt() / made.scale)


def test_what_is_not_trained_is_measured_once():
    predictors = {"white": Nothing(), "trained": Trained()}
    made = fitted(predictors, [cells(seed=0), cells(seed=1)])
    before = {name: made.whitening[name].weight.clone() for name in predictors}
    made.fit(predictors, CENTERS, [cells(seed=2), cells(seed=3)], iter(()))
    assert torch.equal(made.whitening["white"].weight, before["white"])
    assert not torch.equal(made.whitening["trained"].weight, before["trained"])


def test_statistics_of_channels():
    known = cells(70, scale=2.0).half()
    known[..., 1] = 3.0  # a dead channel
    mean, std = channel_statistics(known)
    flat = known.double().flatten(0, 2)
    assert mean == pytest.approx(flat.mean(0).float(), abs=1e-5)
    assert std[[0, 2, 3]] == pytest.approx(flat.std(0, correction=0).float()[[0, 2, 3]], rel=1e-4) and std[1] == 1
    ready = TrainingCells(known, mean, std)[[3, 5]]
    assert ready == pytest.approx((known[[3, 5]].float() - mean) / std)
