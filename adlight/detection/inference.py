"""Scoring outside a trainer, on a device and in the precision in which the thresholds were calibrated."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch
from torch import Tensor

from adlight.types import Batch, UserError, first_line

AUTOCAST = {"32-true": None, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}  # None: no autocast
SHORT = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}


def autocast_dtype(precision: str) -> torch.dtype | None:
    """Return the autocast type of a trainer's precision, None for no autocast; raise a UserError if it is unknown."""
    precision = SHORT.get(precision, precision)
    if precision not in AUTOCAST:
        raise UserError(f"precision={precision} is unknown: choose {', '.join(AUTOCAST)}")
    return AUTOCAST[precision]


class _TensorFloat32:
    """Allows TF32 on GPUs, as `train.build` does, until the last thread that uses it is done."""

    def __init__(self) -> None:
        self.lock, self.users, self.before = Lock(), 0, "highest"

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self.lock:
            if not self.users:
                self.before = torch.get_float32_matmul_precision()
                torch.set_float32_matmul_precision("high")
            self.users += 1
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if not self.users:
                    torch.set_float32_matmul_precision(self.before)


_tensor_float_32 = _TensorFloat32()  # the setting belongs to the process, so its users are counted per process


@contextmanager
def inference(device: torch.device, autocast: torch.dtype | None) -> Iterator[None]:
    """Compute without gradients in the precision of a trainer; global settings are restored afterwards."""
    with (
        _tensor_float_32(),
        torch.inference_mode(),
        torch.autocast(device.type, autocast, enabled=autocast is not None),
    ):
        yield


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute without gradients and without autocast."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def make_batch(image: Tensor, size: Tensor | None = None, content: Tensor | None = None) -> Batch:
    """Make a batch of unlabelled images (B, C, H, W) uint8; sizes (B, 2) and content (B, H, W) as in `Batch`."""
    zeros = image.new_zeros(image.shape[0], dtype=torch.long)  # len() would become a constant in an exported graph
    mask = torch.zeros_like(image[:, 0], dtype=torch.bool)
    pixels = image.to(torch.float32, copy=True).div_(255)
    batch = Batch(image=pixels, label=zeros, mask=mask, index=zeros, category=zeros)
    if size is not None:
        batch["size"] = size.to(image.device)
    if content is not None:
        batch["content"] = content.to(image.device)
    return batch


def find_device(name: str) -> torch.device:
    """Find a device by name, or raise a UserError; `auto` prefers a GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name} cannot be used: {first_line(error)}") from error
