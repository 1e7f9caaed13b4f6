"""Residuals measured by normal images."""

import pytest
import torch

from adlight.detection.whitening import Whitening, k_means, nearest_center, second_moments

ONE = torch.zeros(1, 4)


def correlated(count, seed=0, scale=1.0):
    rng = torch.manual_seed(seed)
    mix = torch.randn(4, 4, generator=torch.manual_seed(9)) + torch.eye(4)
    return scale * torch.randn(count, 30, 4, generator=rng) @ mix


def fitted(residual, mean=None, centers=ONE, **settings):
    mean = torch.zeros(len(residual), 4) if mean is None else mean
    return Whitening(4, **settings).fit(centers, second_moments(mean, residual, centers))


def test_moments_are_the_mean_outer_product():
    residual = correlated(5)
    total, images = second_moments(torch.zeros(5, 4), residual, ONE)
    flat = residual.flatten(0, 1).double()
    assert total[0] / 5 == pytest.approx(flat.T @ flat / len(flat), rel=1e-5) and images.tolist() == [5]


def test_the_score_is_the_equation():
    """sqrt(mean_c (U^T r)_c^2 / (l_c + 0.1 mean l)), as it stands in the docstring."""
    residual, query = correlated(6), correlated(2, seed=1)
    flat = residual.flatten(0, 1).double()
    variance, basis = torch.linalg.eigh(flat.T @ flat / len(flat))
    wanted = ((query.double() @ basis).square() / (variance + 0.1 * variance.mean())).mean(-1).sqrt()
    assert fitted(residual)(torch.zeros(2, 4), query) == pytest.approx(wanted.float(), rel=1e-4)


def test_normal_residuals_have_length_one():
    length = fitted(correlated(200))(torch.zeros(50, 4), correlated(50, seed=1)).square().mean()
    assert 0.6 < float(length) < 1.0  # the ridge makes it a little less


def test_clusters_have_their_own_covariance():
    mean = torch.tensor([[0.0] * 4, [5.0] * 4]).repeat_interleave(40, 0)
    residual = torch.cat([correlated(40), correlated(40, scale=10)])
    made = fitted(residual, mean, centers=mean[[0, -1]], prior=0.0)
    small, large = made(mean, residual).mean(1).split(40)
    assert small.mean().item() == pytest.approx(large.mean().item(), rel=0.1)


def test_a_cluster_without_images_is_measured_by_all():
    centers = torch.stack([torch.zeros(4), torch.full((4,), 9.0)])
    residual, query = correlated(10), correlated(3, seed=1)
    made = fitted(residual, centers=centers)
    assert made(torch.full((3, 4), 9.0), query) == pytest.approx(
        fitted(residual, prior=0)(torch.zeros(3, 4), query), rel=1e-4
    )


def test_moments_of_a_fold_can_be_taken_out():
    residual = correlated(10)
    whole, part, rest = (second_moments(torch.zeros(len(x), 4), x, ONE) for x in (residual, residual[:3], residual[3:]))
    left = whole.plus(part, -1)
    assert left.total == pytest.approx(rest.total, abs=1e-4) and left.images.tolist() == [7]


def test_equal_residuals_are_no_division_by_zero():
    made = fitted(torch.zeros(3, 30, 4))
    assert torch.isfinite(made(torch.zeros(1, 4), correlated(1))).all()


def test_k_means_finds_what_is_apart():
    corners = torch.tensor([[0.0, 0], [10, 0], [0, 10]])
    points = corners.repeat_interleave(20, 0) + torch.randn(60, 2, generator=torch.manual_seed(0))
    centers = k_means(points, 3)
    assert torch.cdist(corners, centers).amin(1).max() < 1
    assert nearest_center(points, centers).view(3, 20).unique(dim=1).shape == (3, 1)
    assert torch.equal(centers, k_means(points, 3))


@pytest.mark.parametrize(("points", "most"), [(torch.ones(5, 2), 1), (torch.eye(2), 2)])
def test_k_means_of_fewer_points_than_clusters(points, most):
    centers = k_means(points, 8)
    assert 1 <= len(centers) <= most and torch.isfinite(centers).all()
