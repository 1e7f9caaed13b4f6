"""Muon and AdamW as one optimizer."""

import copy

import pytest
import torch
from torch.optim import AdamW, Muon

from adlight.features.optimizer import MuonAdamW, orthogonalize


def layers(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Linear(8, 12), torch.nn.Linear(12, 3)


def step(optimizer, first, second, seed):
    x = torch.randn(16, 8, generator=torch.manual_seed(seed))
    optimizer.zero_grad()
    second(first(x).tanh()).square().sum().backward()
    optimizer.step()


def combined(first, second):
    groups = [{"params": [first.weight], "muon": True}, {"params": [second.weight]}]
    return MuonAdamW([*groups, {"params": [first.bias, second.bias], "weight_decay": 0.0}, {"params": []}], lr=1e-2)


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (9, 9)])
def test_singular_values_come_near_one(shape):
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape, generator=torch.manual_seed(0))))
    assert values.min() > 0.4 and values.max() < 1.4


def test_each_part_steps_as_torch_s_own():
    mine, theirs = layers(), layers()
    optimizer = combined(*mine)
    muon = Muon([theirs[0].weight], lr=2e-2, momentum=0.95, weight_decay=0.0)
    adamw = AdamW(
        [{"params": [theirs[1].weight]}, {"params": [theirs[0].bias, theirs[1].bias], "weight_decay": 0.0}],
        lr=1e-2, betas=(0.9, 0.95), weight_decay=0.05,
    )  # fmt: skip
    step(optimizer, *mine, 1)
    muon.zero_grad(), adamw.zero_grad()
    x = torch.randn(16, 8, generator=torch.manual_seed(1))
    theirs[1](theirs[0](x).tanh()).square().sum().backward()
    muon.step(), adamw.step()
    assert mine[0].weight.detach() == pytest.approx(theirs[0].weight.detach(), abs=2e-3)  # torch's works in bfloat16
    for ours, reference in ((mine[1].weight, theirs[1].weight), (mine[0].bias, theirs[0].bias)):
        assert torch.equal(ours, reference)


def test_a_schedule_reaches_both():
    first, second = layers()
    optimizer = combined(first, second)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = copy.deepcopy([first.weight, second.weight, second.bias])
    step(optimizer, first, second, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, (first.weight, second.weight, second.bias), strict=True))


def test_resumed_as_if_never_stopped():
    whole, parted = layers(), layers()
    optimizer, before = combined(*whole), combined(*parted)
    for i in range(4):
        step(optimizer, *whole, i)
    for i in range(2):
        step(before, *parted, i)
    after = combined(*parted)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    for i in range(2, 4):
        step(after, *parted, i)
    for a, b in zip(whole, parted, strict=True):
        assert torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)
