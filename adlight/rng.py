"""Seeds that are derived from several numbers, such as a run's seed and a step, and tensors drawn with them."""

from zlib import crc32

import numpy as np
import torch
from torch import Tensor


def derive_seed(purpose: str, *numbers: int) -> int:
    """Mix numbers >= 0 into a seed below 2**32: torch's CPU generator ignores all higher bits.

    Args:
        purpose: what is drawn, so that two things drawn in one step do not see the same random bits.
        numbers: such as the run's seed, the step and the process.
    """
    return int(np.random.SeedSequence([crc32(purpose.encode(errors="surrogateescape")), *numbers]).generate_state(1)[0])


def to_device(drawn: Tensor, device: torch.device) -> Tensor:
    """Move a CPU-drawn tensor to `device` without synchronizing, so that draws are identical on every device."""
    return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn.to(device)
