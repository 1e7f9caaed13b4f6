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
    assert made.image_score(query, query[..., 0]).numpy() == pytest.approx(distance.mean(1), rel=1e-3)
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


def test_classes_are_a_second_opinion():
    count, classes, rng = 60, 3, torch.manual_seed(1)
    features, logits = torch.randn(count, 2, 2, 4, generator=rng), 3 * torch.randn(count, 2, 2, classes, generator=rng)
    raw = torch.cat([features, logits], -1).half()
    mean, std = raw.float().mean((0, 1, 2)), raw.float().std((0, 1, 2))
    made = DeepNearestNeighbours(4 + classes, class_weight=0.5)
    made.classes = classes
    made.fit(TrainingCells(raw, mean, std))

    plain = DeepNearestNeighbours(4)
    plain.fit(TrainingCells(raw[..., :4], mean[:4], std[:4]))
    others = torch.arange(count)
    distance = torch.stack([plain._nearest(plain.means[i : i + 1], others[i : i + 1])[0].mean() for i in others])
    posterior = raw[..., 4:].double().mean((1, 2)).softmax(1)
    entropy = -(posterior * posterior.mean(0).log()).sum(1)

    query = torch.cat([torch.randn(5, 2, 2, 4, generator=rng), 3 * torch.randn(5, 2, 2, classes, generator=rng)], -1)
    cells = (query - mean) / std
    p = query[..., 4:].double().mean((1, 2)).softmax(1)
    pairs = (plain.image_score(cells[..., :4], cells[..., 0]), distance), (-(p @ posterior.mean(0).log()), entropy)
    expected = [(x - y.median()) / (y.quantile(0.9) - y.median()) for x, y in pairs]
    actual = made.image_score(cells, cells[..., 0])
    torch.testing.assert_close(actual, (expected[0] + 0.5 * expected[1]).float(), rtol=1e-3, atol=1e-3)
    assert made(cells).shape == cells.shape


def test_the_length_of_features_does_not_count(fitted):
    made, _ = fitted
    query = cells(7, 4)
    torch.testing.assert_close(made.image_score(3 * query, query[..., 0]), made.image_score(query, query[..., 0]))
