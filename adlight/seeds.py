"""One seed from several numbers, such as a run's seed and a step."""

import numpy as np


def mixed(*numbers: int) -> int:
    """Mix numbers >= 0 into a seed for torch, below 2^32: its CPU generator ignores all higher bits."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
