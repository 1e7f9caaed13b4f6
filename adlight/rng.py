"""One seed from several numbers, such as a run's seed and a step, and what is drawn by it."""

from zlib import crc32

import numpy as np
import torch
from torch import Tensor


def derive_seed(purpose: str, *numbers: int) -> int:
    """Mix numbers >= 0 into a seed for torch, below 2^32: its CPU generator ignores all higher bits.

    Args:
        purpose: what is drawn; two things that are drawn in one step must not see the same random bits.
        numbers: such as the run's seed, the step and the process.
    """
    return int(np.random.SeedSequence([crc32(purpose.encode()), *numbers]).generate_state(1)[0])


def to_device(drawn: Tensor, device: torch.device) -> Tensor:
    """Bring what the CPU has drawn, and every device would see alike, to a device; the host waits for no GPU."""
    return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn.to(device)
