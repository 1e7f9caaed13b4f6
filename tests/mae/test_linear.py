"""The linear start: conditional means of a Gaussian, for any mask, in closed form."""

import pytest
import torch

from adlight.mae.linear import LinearStart
from adlight.mae.masking import partition_masks, random_mask

L, P, K = 6, 4, 3


def low_rank(count, seed=0, noise=0.01):
    """Tokens of three factors and a little noise."""
    rng = torch.Generator().manual_seed(seed)
    factors = torch.randn(K, L * P, generator=torch.Generator().manual_seed(9))
    x = 0.5 + torch.randn(count, K, generator=rng) @ factors
    return (x + noise * torch.randn(x.shape, generator=rng)).view(count, L, P)


def fitted(tokens, components=K):
    start = LinearStart(L, P, components).eval()
    start.fit(tokens)
    return start


def views(n=3):
    return partition_masks(L, n, torch.Generator().manual_seed(0))


def test_it_is_the_conditional_mean_of_a_gaussian():
    """mean_h + S_hv S_vv^-1 (x_v - mean_v) with S = W^T W + s I, averaged over the views that hide a token."""
    start, x, mask = fitted(low_rank(50)), low_rank(2, seed=1), views()
    w, mean = start.components.transpose(0, 1).flatten(1).double(), start.mean.flatten().double()
    covariance = w.T @ w + start.noise.double() * torch.eye(L * P)
    total, count = torch.zeros(2, L * P, dtype=torch.float64), torch.zeros(L * P)
    for hidden in mask.repeat_interleave(P, 1):
        h, v = hidden.nonzero()[:, 0], (~hidden).nonzero()[:, 0]
        gain = covariance[h][:, v] @ torch.linalg.inv(covariance[v][:, v])
        total[:, h] += mean[h] + (x.flatten(1).double()[:, v] - mean[v]) @ gain.T
        count[h] += 1
    torch.testing.assert_close(start(x, mask).flatten(1).double(), total / count, rtol=1e-3, atol=1e-3)


def test_hidden_tokens_of_a_linear_world_are_found():
    start, x = fitted(low_rank(50)), low_rank(20, seed=1)
    error = (start(x, views()) - x).square().mean()
    assert error < 0.01 * (x - start.mean).square().mean()


@pytest.mark.parametrize("token", range(L))
def test_a_token_does_not_see_itself(token):
    start, x = fitted(low_rank(50)), low_rank(1)
    other = x.clone()
    other[:, token] += 1
    assert torch.equal(start(x, views())[:, token], start(other, views())[:, token])
    assert not torch.equal(start(x, views()), start(other, views()))


def test_without_components_it_is_the_mean_of_each_place():
    tokens = low_rank(50)
    torch.testing.assert_close(fitted(tokens, 0)(low_rank(2), views()), tokens.mean(0).expand(2, L, P))


def test_few_images_leave_components_empty():
    start = fitted(low_rank(14), components=5)
    assert start.components.shape == (L, 5, P) and not start.components[:, 2:].any()
    assert start(low_rank(1), views()).isfinite().all()


def test_what_no_view_hides_has_the_mean_of_its_place():
    start, mask = fitted(low_rank(50)), random_mask(L, 0.5, torch.Generator().manual_seed(0))
    seen = ~mask[0]
    torch.testing.assert_close(start(low_rank(2), mask)[:, seen], start.mean[seen].expand(2, -1, -1))


def test_kept_inverses_are_forgotten_with_their_components():
    one, other, mask = fitted(low_rank(50)), fitted(low_rank(50, seed=3)), views()
    before = one(low_rank(2), mask)
    assert torch.equal(one(low_rank(2), mask), before) and one.solved is not None
    one.load_state_dict(other.state_dict())
    torch.testing.assert_close(one(low_rank(2), mask), other(low_rank(2), mask))
