"""Scoring without a trainer: on which device, and in the precision that thresholds were calibrated in."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from adlight.types import Batch, ScoredImages, UserError, reconstruction_of

if TYPE_CHECKING:
    from adlight.detection.detector import AnomalyDetector

AUTOCAST = {"32-true": None, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}  # None: no autocast
SHORT = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}


class ModuleScorer:
    """Scores pixels by a module; threads may share one, they score one after the other.

    Args:
        module: with its weights.
        precision: the trainer's.
        device: where to compute.

    Raises:
        UserError: an unknown precision.
    """

    def __init__(self, module: "AnomalyDetector", precision: str, device: str | torch.device) -> None:
        self.device, self.autocast = torch.device(device), autocast_dtype(precision)
        self.module = module.eval().requires_grad_(False).to(self.device)
        self.lock = Lock()  # a backbone keeps its layers' outputs for a moment

    def __call__(
        self,
        pixels: np.ndarray,
        size: np.ndarray | None,
        reconstruct: bool = False,
        content: np.ndarray | None = None,
    ) -> ScoredImages:
        """Score images (B, C, H, W) uint8, see `types.Scorer`."""
        known = (None if one is None else torch.from_numpy(one) for one in (size, content))
        with self.lock, inference(self.device, self.autocast):
            scores = self.module.score(make_batch(torch.from_numpy(pixels).to(self.device), *known))
            shown = reconstruction_of(scores).float().cpu().numpy() if reconstruct else None
            return ScoredImages(scores["image"].double().cpu().numpy(), scores["pixel"].float().cpu().numpy(), shown)


def autocast_dtype(precision: str) -> torch.dtype | None:
    """Look up what a trainer's precision casts to; None: nothing is cast.

    Raises:
        UserError: a precision in which nothing is trained here.
    """
    precision = SHORT.get(precision, precision)
    if precision not in AUTOCAST:
        raise UserError(f"precision={precision}: scores are computed in {', '.join(AUTOCAST)}")
    return AUTOCAST[precision]


class _TensorFloat32:
    """Allows TF32 on GPUs, as `train.build` does, until the last of several threads is done."""

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


tensor_float_32 = _TensorFloat32()  # the setting is the process's


@contextmanager
def inference(device: torch.device, autocast: torch.dtype | None) -> Iterator[None]:
    """Compute without gradients, as a trainer of this precision does; global settings are restored afterwards."""
    with (
        tensor_float_32(),
        torch.inference_mode(),
        torch.autocast(device.type, autocast, enabled=autocast is not None),
    ):
        yield


@contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """Compute without gradients, in the precision that the tensors have."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def make_batch(image: Tensor, size: Tensor | None = None, content: Tensor | None = None) -> Batch:
    """Make a batch of images (B, C, H, W) uint8 of which nothing else is known.

    But, if they are padded, their `size` (B, 2), and with a region of interest their `content` (B, H, W) bool.
    """
    zeros = image.new_zeros(image.shape[0], dtype=torch.long)  # len() would make it a constant of an exported graph
    mask = torch.zeros_like(image[:, 0], dtype=torch.bool)
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
