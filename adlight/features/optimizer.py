"""An optimizer that updates matrices with Muon and all other parameters with AdamW."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

QUINTIC, ITERATIONS = (3.4445, -4.7750, 2.0315), 5  # coefficients and number of Newton-Schulz steps (Jordan 2024)


class Matrices(Protocol):
    """A network that lists the weight matrices to be updated by Muon."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over all parameters."""

    def matrices(self) -> list[nn.Parameter]:
        """List the parameters for Muon."""


class MuonAdamW(Optimizer):
    """Updates groups marked `muon=True` with Muon (Jordan 2024) and all other groups with AdamW.

    `torch.optim.Muon` always orthogonalizes in bfloat16, which is 20 times slower on CPUs without bfloat16 units.
    Here, only GPUs use bfloat16; CPUs use float32.

    Args:
        groups: parameter groups; groups for Muon contain only matrices.
        lr: learning rate of AdamW.
        muon_lr: learning rate of Muon: the spectral norm of an update to a matrix that is not taller than wide.
        momentum: Nesterov momentum of Muon.
        betas: betas of AdamW.
        weight_decay: weight decay of AdamW, unless a group has its own; Muon has none.
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
        """Update all parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.adamw.param_groups = [group for group in self.param_groups if not group["muon"]]
        self.adamw.state = self.state  # shared, so that schedulers and checkpoints see a single optimizer
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


def orthogonalize(matrix: Tensor) -> Tensor:
    """Bring all singular values close to 1 by Newton-Schulz iterations. (m, n) -> (m, n)."""
    a, b, c = QUINTIC
    x = matrix.bfloat16() if matrix.is_cuda else matrix.float()
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)


def parameter_groups(trained: Sequence[Matrices], *more: nn.Parameter) -> list[dict[str, Any]]:
    """Group parameters: the networks' `matrices` for Muon, all others for AdamW, with weight decay on matrices."""
    matrices = [p for network in trained for p in network.matrices()]
    ids = {id(p) for p in matrices}
    rest = [*(p for network in trained for p in network.parameters() if id(p) not in ids), *more]
    return [
        {"params": matrices, "muon": True},
        {"params": [p for p in rest if p.ndim >= 2]},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
