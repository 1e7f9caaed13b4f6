"""Moving average of a network's weights."""

from copy import deepcopy
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from adlight.settings import checked


class EMA(nn.Module):
    """Exponential moving average of a network's weights (Polyak 1992), stored next to them in the checkpoint.

    The first update copies the weights.

    Args:
        network: the network that is trained.
        decay: fraction of the old average that an update keeps, such as 0.999.

    Attributes:
        network: the averaged network.
    """

    num_updates: Tensor

    @checked
    def __init__(self, network: nn.Module, decay: Annotated[float, Field(gt=0, lt=1)]) -> None:
        super().__init__()
        self.network = deepcopy(network).requires_grad_(False)
        self.decay, self.started = decay, False
        self.register_buffer("num_updates", torch.tensor(0))

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the average towards the network's current weights."""
        averages: list[Tensor] = list(self.network.parameters())
        weights: list[Tensor] = list(network.parameters())
        self.started = self.started or bool(self.num_updates > 0)  # read once: it synchronizes with the GPU
        if self.started:
            torch._foreach_lerp_(averages, weights, 1 - self.decay)
        else:
            torch._foreach_copy_(averages, weights)
        self.started = True
        self.num_updates += 1
