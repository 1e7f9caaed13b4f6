"""Nearest training images by the means of their cells."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from adlight.detection.whitening import RIDGE
from adlight.features.cells import TrainingCells
from adlight.memory.dn2 import DeepNearestNeighbours
from adlight.types import UserError

C = 5


def cells(count, seed):
    spread = torch.tensor([5.0, 3, 1, 0.5, 0.1])
    return torch.randn(count, 1, 1, C, generator=torch.manual_seed(seed)) * spread + torch.randn(count, 3, 4, C)


@pytest.fixture
def fitted():
    made, known = DeepNearestNeighbours(C, neighbours=3), cells(40, 0).half()
    made.fit(TrainingCells(known, torch.zeros(C), torch.ones(C)))
    return made, known.double().numpy().mean((1, 2))  # (N, C)


def test_scores_are_mahalanobis_distances_to_the_nearest_images(fitted):
    made, known = fitted
    query = cells(7, 1)
    direction, asked = (x / np.linalg.norm(x, axis=1)[:, None] for x in (known, query.double().numpy().mean((1, 2))))
    covariance = np.cov(direction.T, bias=True)
    covariance += RIDGE * np.trace(covariance) / C * np.eye(C)
    metric = {"metric": "mahalanobis", "metric_params": {"VI": np.linalg.inv(covariance)}}
    reference = NearestNeighbors(n_neighbors=3, algorithm="brute", **metric).fit(direction)
    distance, nearest = reference.kneighbors(asked)
    found = made.image_score(query, query[..., 0]) * made.unit
    assert found.numpy() == pytest.approx(distance.mean(1), rel=1e-3)
    expected = np.broadcast_to(known[nearest].mean(1)[:, None, None], query.shape)
    assert made(query).numpy() == pytest.approx(expected, abs=1e-3)


def test_an_image_does_not_serve_to_predict_itself(fitted):
    made, known = fitted
    query = torch.from_numpy(known).float()[:, None, None]  # (N, 1, 1, C)
    alone = made(query, torch.arange(len(query)))
    assert (made._nearest(query[:, 0, 0])[1] == torch.arange(len(query))[:, None]).any(1).all()
    assert not torch.allclose(made(query), alone)
    without = DeepNearestNeighbours(C, neighbours=3)
    without.basis, without.means, without.bank = made.basis, made.means[1:], made.bank[1:]
    torch.testing.assert_close(without(query[:1]), alone[:1])


@pytest.mark.parametrize("count", [200, 40])  # over a hundred channels
def test_the_unit_is_the_spread_of_images_that_were_not_fitted(count):
    channels, rng = 100, torch.manual_seed(2)
    drawn = torch.randn(count + 400, 1, 1, channels, generator=rng) * torch.linspace(2, 0.1, channels) + 1
    made = DeepNearestNeighbours(channels)
    made.fit(TrainingCells(drawn[:count].half(), torch.zeros(channels), torch.ones(channels)))
    score = made.image_score(drawn[count:], drawn[count:, ..., 0])
    assert 0.6 < score.quantile(0.9) - score.median() < 1.6


def test_equal_images_have_a_unit():
    made, same = DeepNearestNeighbours(C), cells(1, 5).expand(6, -1, -1, -1)
    made.fit(TrainingCells(same.half(), torch.zeros(C), torch.ones(C)))
    assert torch.isfinite(made.image_score(cells(2, 6), same[:2, ..., 0])).all()


def test_padding_is_left_out(fitted):
    made, _ = fitted
    query = cells(2, 3)
    padded = torch.full((2, 6, 5, C), torch.nan)
    padded[:, :3, :4] = query
    torch.testing.assert_close(made.image_score(padded, padded[..., 0]), made.image_score(query, query[..., 0]))


def test_too_few_images():
    made = DeepNearestNeighbours(C, neighbours=3)
    with pytest.raises(UserError, match="neighbours"):
        made.fit(TrainingCells(cells(3, 0).half(), torch.zeros(C), torch.ones(C)))


def test_the_length_of_features_does_not_count(fitted):
    made, _ = fitted
    query = cells(7, 4)
    torch.testing.assert_close(made.image_score(3 * query, query[..., 0]), made.image_score(query, query[..., 0]))
