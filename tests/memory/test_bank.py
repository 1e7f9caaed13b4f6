"""PatchCore's bank against its definition, written naively."""

import pytest
import torch
from torch import Generator
from torch.nn import functional as F

from adlight.features.cells import FEW, TrainingCells
from adlight.memory import bank
from adlight.memory.bank import PatchBank, greedy_coreset

C = 6


def cells(count, seed=0, grid=(4, 5)):
    return torch.randn(count, *grid, C, generator=torch.manual_seed(seed))


def training(count=12, seed=0):
    return TrainingCells(cells(count, seed).half(), torch.zeros(C), torch.ones(C))


def fitted(**settings):
    made = PatchBank(C, **settings)
    made.fit(training())
    return made


def pooled(x):
    """Mean over those of the 3 x 3 cells that there are."""
    out = torch.empty_like(x)
    for row in range(x.shape[1]):
        for column in range(x.shape[2]):
            near = x[:, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
            out[:, row, column] = near.mean((1, 2))
    return out


@pytest.mark.parametrize("chunk", [2**24, 200])
def test_distances_are_those_of_all_pairs(chunk, monkeypatch):
    monkeypatch.setattr(bank, "CHUNK", chunk)  # the bank in one part, and cell by cell
    made, query = fitted(coreset=1.0), cells(3, seed=1)
    wanted = torch.cdist(pooled(query).flatten(0, 2).double(), made.bank.double()).amin(1)
    assert made.residual(query).norm(dim=-1).flatten() == pytest.approx(wanted.float(), rel=1e-6, abs=1e-6)


def test_images_are_scored_as_if_alone():
    made, query = fitted(coreset=0.5, neighbours=4), cells(2 * FEW + 3, seed=1)
    query[5, 2:] = torch.nan  # padding
    residual = made.residual(query)
    score = made.image_score(query, residual.norm(dim=-1))
    for i, x in enumerate(query):
        alone = made.residual(x[None])
        torch.testing.assert_close(residual[i : i + 1], alone, equal_nan=True)
        torch.testing.assert_close(score[i : i + 1], made.image_score(x[None], alone.norm(dim=-1)))


def test_the_whole_bank_holds_every_training_cell():
    made = fitted(coreset=1.0, projection=0)
    known = pooled(training()[:]).flatten(0, 2)
    assert len(made.bank) == len(known) == 240
    assert torch.cdist(known.double(), made.bank.double()).amin(1).max() < 1e-5
    assert made.residual(training()[:]).abs().max() < 1e-2  # the search may take a twin at 1e-3


def test_image_score_is_the_re_weighted_worst_cell():
    made, query = fitted(coreset=0.5, neighbours=4), cells(3, seed=1)
    for x, found in zip(query, made.image_score(query, made.residual(query).norm(dim=-1)), strict=True):
        distances = torch.cdist(pooled(x[None]).flatten(0, 2), made.bank)  # (L, bank)
        worst = distances.amin(1).argmax()
        nearest = made.bank[distances[worst].argmin()]
        around = (made.bank - nearest).norm(dim=1).argsort()[:4]
        weight = 1 - F.softmax(distances[worst][around] / C**0.5, 0)[0]
        assert float(found) == pytest.approx(float(weight * distances[worst].min()), rel=1e-4)
    plain = fitted(coreset=0.5, neighbours=1)
    score = plain.residual(query).norm(dim=-1)
    assert plain.image_score(query, score) == pytest.approx(score.flatten(1).amax(1), rel=1e-5)


def test_greedy_takes_the_farthest_point_each_time():
    points = torch.randn(60, 3, generator=torch.manual_seed(0))
    chosen = greedy_coreset(points, 15, Generator().manual_seed(0)).tolist()
    for i in range(1, 15):
        distance = torch.cdist(points, points[chosen[:i]]).amin(1)
        assert float(distance[chosen[i]]) == pytest.approx(float(distance.max()), rel=1e-4)
    assert len(set(chosen)) == 15


def test_a_projected_choice_covers_nearly_as_well():
    points = torch.randn(2000, 200, generator=torch.manual_seed(0)) * torch.linspace(3, 0, 200)
    projected = points @ torch.randn(200, 64, generator=torch.manual_seed(1)) / 8
    radii = [
        torch.cdist(points, points[greedy_coreset(seen, 200, Generator().manual_seed(0))]).amin(1).max()
        for seen in (points, projected)
    ]
    assert radii[1] < 1.15 * radii[0]


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"coreset": 0.1}, 24),
        ({"coreset": 1.0, "max_cells": 50}, 50),
        ({"coreset": 1.0, "sample": 30}, 30),
        ({"coreset": 1e-9}, 1),
    ],
)
def test_size_of_the_bank(settings, size):
    assert len(fitted(**settings).bank) == size


def test_the_same_data_gives_the_same_bank():
    assert torch.equal(fitted().bank, fitted().bank)
    assert not torch.equal(fitted(seed=1).bank, fitted().bank)


def test_what_makes_no_sense_is_refused():
    for settings in ({"coreset": 0.0}, {"coreset": 2.0}, {"neighbours": 0}, {"max_cells": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            PatchBank(C, **settings)
