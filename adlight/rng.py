"""Derive seeds from several numbers, such as a run's seed and a step, and move drawn tensors to a device."""

from zlib import crc32

import numpy as np
import torch
from torch import Tensor


def derive_seed(purpose: str, *numbers: int) -> int:
    """Derive a seed below 2**32 from numbers >= 0; torch's CPU generator ignores higher bits.

    Args:
        purpose: name of the draw, so that different draws of a step do not use the same random bits.
        numbers: for example the run's seed, the step and the process.
    """
    return int(np.random.SeedSequence([crc32(purpose.encode(errors="surrogateescape")), *numbers]).generate_state(1)[0])


def to_device(drawn: Tensor, device: torch.device) -> Tensor:
    """Move a tensor drawn on the CPU, for equal draws on every device, to `device` without synchronizing."""
    return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn.to(device)
