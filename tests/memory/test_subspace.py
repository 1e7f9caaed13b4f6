"""Principal components of cells."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from adlight.features.cells import TrainingCells
from adlight.memory.subspace import Subspace


def training(count=70):
    rng = torch.manual_seed(0)
    known = torch.randn(count, 3, 4, 6, generator=rng) * torch.tensor([5.0, 3, 1, 0.5, 0.2, 0.1]) + 2
    return TrainingCells(known.half(), torch.zeros(6), torch.ones(6))


@pytest.mark.parametrize("explained", [0.5, 0.95, 1.0])
def test_projection_is_scikit_learns(explained):
    made, known = Subspace(6, explained), training()
    made.fit(known)
    flat = known[:].flatten(0, 2).double().numpy()
    share = np.cumsum(PCA(svd_solver="full").fit(flat).explained_variance_ratio_)
    count = min(6, int((share < explained - 1e-12).sum()) + 1)
    reference = PCA(count, svd_solver="full").fit(flat)
    query = torch.randn(2, 3, 4, 6)
    wanted = reference.inverse_transform(reference.transform(query.flatten(0, 2).double().numpy()))
    assert len(made.components) == count
    assert made(query).flatten(0, 2).numpy() == pytest.approx(wanted, abs=1e-4)


def test_what_lies_in_the_subspace_leaves_nothing():
    made = Subspace(6, 0.9)
    made.fit(training())
    inside = made(torch.randn(1, 3, 4, 6))
    assert made.residual(inside).abs().max() < 1e-4
