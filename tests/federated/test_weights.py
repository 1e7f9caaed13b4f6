"""What sites share, and how it is averaged."""

import pytest
import torch
from makers import composed
from torch import nn

from adlight.federated.weights import average, check_model, set_shared_weights, shared_weights
from adlight.runs.config import instantiate_node
from adlight.types import UserError


def built(*words):
    return instantiate_node(composed("dataset=mvtec", *words).model)


class Frozen(nn.Module):
    def __init__(self, ema=False):
        super().__init__()
        self.trained, self.frozen = nn.Linear(2, 1), nn.Linear(2, 1).requires_grad_(False)
        self.register_buffer("statistics", torch.zeros(2))
        if ema:
            self.ema = nn.Linear(2, 1).requires_grad_(False)


def test_the_average_is_weighted_by_images():
    weights = [{"w": torch.tensor([0.0, 3.0])}, {"w": torch.tensor([1.0, 6.0])}, {"w": torch.tensor([2.0, 0.0])}]
    found = average(weights, [2, 1, 3])
    assert found["w"].dtype == torch.float32
    assert found["w"].tolist() == pytest.approx([(0 * 2 + 1 * 1 + 2 * 3) / 6, (3 * 2 + 6 * 1 + 0 * 3) / 6])


def test_the_average_of_one_site_is_its_own_weights_to_the_last_bit():
    weights = {"w": torch.randn(100, generator=torch.Generator().manual_seed(0)), "s": torch.tensor(0.1)}
    assert all(torch.equal(one, weights[name]) for name, one in average([weights], [7]).items())


def test_one_full_batch_step_at_each_site_averages_to_the_step_on_all_images():
    # FedSGD, McMahan 2017, section 2: sum n_k/n (w - lr g_k) = w - lr g
    rng = torch.Generator().manual_seed(1)
    x, y, start = torch.randn(9, 4, generator=rng), torch.randn(9, generator=rng), torch.randn(4, generator=rng)

    def step(rows):
        w = start.clone().requires_grad_()
        ((x[rows] @ w - y[rows]) ** 2).mean().backward()
        return {"w": (start - 0.1 * w.grad).detach()}

    sites = [torch.arange(0, 2), torch.arange(2, 9)]
    together = average([step(rows) for rows in sites], [len(rows) for rows in sites])
    assert torch.allclose(together["w"], step(torch.arange(9))["w"], atol=1e-6)


def test_what_is_frozen_or_a_site_s_statistics_is_not_shared():
    assert set(shared_weights(Frozen())) == {"trained.weight", "trained.bias"}
    assert set(shared_weights(Frozen(ema=True))) == {"trained.weight", "trained.bias", "ema.weight", "ema.bias"}


def test_shared_weights_are_copies_that_can_be_set_again():
    module, other = Frozen(), Frozen()
    found, frozen = shared_weights(module), other.frozen.weight.clone()
    set_shared_weights(other, found)
    assert torch.equal(other.trained.weight, module.trained.weight) and torch.equal(other.frozen.weight, frozen)
    with torch.no_grad():
        module.trained.weight.add_(1)
    assert torch.equal(found["trained.weight"], other.trained.weight)


def test_short_floats_are_averaged_in_float32_and_set_in_their_own():
    module = Frozen().bfloat16()
    found = shared_weights(module)
    assert found["trained.weight"].dtype == torch.float32
    set_shared_weights(module, average([found, found], [1, 2]))
    assert module.trained.weight.dtype == torch.bfloat16


def test_weights_of_another_architecture_are_refused_by_name():
    weights = shared_weights(Frozen()) | {"trained.bias": torch.zeros(2)}
    with pytest.raises(UserError, match=r"trained\.bias"):
        set_shared_weights(Frozen(), weights)


@pytest.mark.parametrize("model", ["knn", "gan", "dagan"])
def test_what_is_not_trained_by_one_optimizer_is_refused_with_what_is(model):
    with pytest.raises(UserError, match="mae"):
        check_model(built(f"model={model}"))


@pytest.mark.parametrize("words", [("mae_small",), ("autoencoder", "model/network=conv"), ("vae",)])
def test_what_is_trained_by_one_optimizer_is_federated(words):
    module = built(f"model={words[0]}", *words[1:])
    check_model(module)
    assert {name for name, p in module.named_parameters() if p.requires_grad} == set(shared_weights(module))
