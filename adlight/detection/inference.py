"""Scoring without a trainer: on which device, and in the precision that thresholds were calibrated in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from adlight.types import Batch, UserError

AUTOCAST = {"32-true": None, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}  # None: no autocast
SHORT = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}


def autocast_dtype(precision: str) -> torch.dtype | None:
    """Look up what a trainer's precision casts to; None: nothing is cast.

    Raises:
        UserError: a precision in which nothing is trained here.
    """
    precision = SHORT.get(precision, precision)
    if precision not in AUTOCAST:
        raise UserError(f"precision={precision}: scores are computed in {', '.join(AUTOCAST)}")
    return AUTOCAST[precision]


@contextmanager
def inference(device: torch.device, autocast: torch.dtype | None) -> Iterator[None]:
    """Compute without gradients, as a trainer of this precision does; global settings are restored afterwards."""
    matmul = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs, as `train.build` sets it
    try:
        with torch.inference_mode(), torch.autocast(device.type, autocast, enabled=autocast is not None):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)


def make_batch(image: Tensor, size: Tensor | None = None, content: Tensor | None = None) -> Batch:
    """Make a batch of images (B, C, H, W) uint8 of which nothing else is known.

    But, if they are padded, their `size` (B, 2), and with a region of interest their `content` (B, H, W) bool.
    """
    zeros, mask = image.new_zeros(len(image), dtype=torch.long), torch.zeros_like(image[:, 0], dtype=torch.bool)
    batch = Batch(image=image.float() / 255, label=zeros, mask=mask, index=zeros, category=zeros)
    known = {"size": size, "content": content}
    return Batch(**batch, **{name: one.to(image.device) for name, one in known.items() if one is not None})  # type: ignore[typeddict-item]


def find_device(name: str) -> torch.device:
    """Find a device by name; `auto` takes a GPU if there is one.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name} cannot be used: {str(error).splitlines()[0]}") from error
