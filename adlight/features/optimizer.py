"""Muon for matrices and AdamW for the rest, as one optimizer."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

QUINTIC = (3.4445, -4.7750, 2.0315)  # Newton-Schulz coefficients (Jordan 2024)


class Matrices(Protocol):
    """A network that says which of its parameters an optimizer of matrices takes."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """List all of them."""

    def matrices(self) -> list[nn.Parameter]:
        """List those that it takes."""


class MuonAdamW(Optimizer):
    """Steps groups that are marked `muon=True` by Muon (Jordan 2024) and all others by AdamW.

    `torch.optim.Muon` always orthogonalizes in bfloat16, which takes 20 times as long on CPUs without such units; here
    that is done where there is a GPU, and in float32 elsewhere.

    Args:
        groups: of parameters; those of Muon hold matrices only.
        lr: AdamW's.
        muon_lr: Muon's: the spectral norm of a step of a matrix that is not higher than wide.
        momentum: Muon's (Nesterov).
        betas: AdamW's.
        weight_decay: AdamW's, unless a group has its own; Muon has none.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float = 2e-3,
        muon_lr: float = 2e-2,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.05,
    ) -> None:
        chosen = [{"lr": muon_lr if group.get("muon") else lr} | group for group in groups if group["params"]]
        defaults = {"lr": lr, "momentum": momentum, "betas": tuple(betas), "weight_decay": weight_decay, "muon": False}
        super().__init__(chosen, defaults)
        self.adamw = AdamW([torch.zeros(1)], lr=lr, betas=(betas[0], betas[1]), weight_decay=weight_decay)
        for group in self.param_groups:
            for name, value in self.adamw.defaults.items():
                group.setdefault(name, value)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.adamw.param_groups = [group for group in self.param_groups if not group["muon"]]
        self.adamw.state = self.state  # one state, so that schedules and checkpoints see one optimizer
        self.adamw.step()
        for group in self.param_groups:
            for p in group["params"] if group["muon"] else ():
                if p.grad is not None:
                    self._muon_step(p, p.grad, group["lr"], group["momentum"])
        return loss

    def _muon_step(self, p: Tensor, grad: Tensor, lr: float, momentum: float) -> None:
        average = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
        average.lerp_(grad, 1 - momentum)
        direction = orthogonalize(grad.lerp(average, momentum))
        p.add_(direction, alpha=-lr * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """Bring all singular values near 1 by Newton-Schulz iterations. (m, n) -> (m, n)."""
    a, b, c = QUINTIC
    x = matrix.bfloat16() if matrix.is_cuda else matrix.float()
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)


def parameter_groups(trained: Sequence[Matrices], *more: nn.Parameter) -> list[dict[str, Any]]:
    """Give matrices of the networks' choice to Muon, all others to AdamW; weight decay on matrices only."""
    special = [p for one in trained for p in one.matrices()]
    chosen = {id(p) for p in special}
    rest = [*(p for one in trained for p in one.parameters() if id(p) not in chosen), *more]
    return [
        {"params": special, "muon": True},
        {"params": [p for p in rest if p.ndim >= 2]},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
