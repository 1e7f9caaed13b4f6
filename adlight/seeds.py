"""One seed from several numbers, such as a run's seed and a step."""

from zlib import crc32

import numpy as np


def mixed(purpose: str, *numbers: int) -> int:
    """Mix numbers >= 0 into a seed for torch, below 2^32: its CPU generator ignores all higher bits.

    Args:
        purpose: what is drawn; two things that are drawn in one step must not see the same random bits.
        numbers: such as the run's seed, the step and the process.
    """
    return int(np.random.SeedSequence([crc32(purpose.encode()), *numbers]).generate_state(1)[0])
