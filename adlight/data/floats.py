"""Images of floats, whose range nothing but the user can know."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from adlight.types import UserError

if TYPE_CHECKING:  # torch takes seconds to import: not for --help
    from torch import Tensor


def scale_floats(image: np.ndarray | Tensor, value_range: tuple[float, float]) -> np.ndarray:
    """Convert floats, of which `value_range` are black and white, to 8 bits.

    Args:
        image: an array (H, W) or (H, W, C) or a tensor (H, W) or (C, H, W).
        value_range: black and white.

    Returns:
        uint8, (H, W) or (H, W, C).

    Raises:
        UserError: no such range, or values outside it.
    """
    try:
        black, white = map(float, value_range if not isinstance(value_range, str) else ())
    except (TypeError, ValueError) as error:
        raise UserError(f"range={value_range!r} must be two numbers, the smaller one first") from error
    if not -np.inf < black < white < np.inf:
        raise UserError(f"range=({black:g}, {white:g}) must be two numbers, the smaller one first")
    if isinstance(image, np.ndarray):
        array = image.astype(np.float64)
    else:
        array = (image.permute(1, 2, 0) if image.ndim == 3 else image).double().numpy(force=True)
    if array.size and not (black <= array.min() and array.max() <= white):  # NaN is not inside either
        raise UserError(f"values from {array.min():g} to {array.max():g} lie outside range=({black:g}, {white:g})")
    return ((array - black) * (255 / (white - black))).round().astype(np.uint8)
