"""Export of detectors as ONNX graphs from pixels to scores, maps, masks and decisions."""

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adlight.detection.detector import AnomalyDetector
from adlight.detection.inference import make_batch
from adlight.detection.session import INPUTS, OUTPUTS
from adlight.metrics.thresholds import Threshold
from adlight.types import UserError, first_line

EXAMPLE = 3  # number of images to trace with; a batch of 0 or 1 would become a constant


class DetectorGraph(nn.Module):
    """Everything from an image of the model's size to a decision, as one module."""

    def __init__(self, detector: AnomalyDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(
        self, image: Tensor, category: Tensor, image_thresholds: Tensor, pixel_thresholds: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Score images (B, C, H, W) uint8 and decide by the thresholds of their categories.

        `category` (B,) int64 are indices into the thresholds of images (K,) float64 and of pixels (K,) float32.

        Returns:
            Scores (B,), maps (B, H, W), masks (B, H, W) bool and decisions (B,) bool. The mask of an anomalous image
            contains the pixels above the threshold or, if there are none, the highest pixel.
        """
        scores = self.detector.score(make_batch(image))
        score, pixel = scores["image"], scores["pixel"].float()  # (B,), (B, H, W)
        decision = score.double() > image_thresholds[category]  # (B,)
        limit = pixel_thresholds[category][:, None, None]  # (B, 1, 1)
        peak = pixel.amax((1, 2), keepdim=True)  # (B, 1, 1)
        mask = (pixel > limit) | ((pixel >= peak) & (peak <= limit))  # (B, H, W)
        return score, pixel, mask & decision[:, None, None], decision


def make_example(channels: int, size: tuple[int, int]) -> Tensor:
    """Draw random images to trace with. -> (B, C, H, W) uint8."""
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (EXAMPLE, channels, *size), dtype=torch.uint8, generator=rng)


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the exporter, which reports every step."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def export_graph(
    detector: AnomalyDetector, channels: int, size: tuple[int, int], thresholds: Sequence[Threshold]
) -> Any:
    """Export a detector on the CPU to ONNX for images of C channels and size (H, W). -> an onnx_ir model.

    The thresholds, one per category in order, become inputs with defaults.

    Raises:
        UserError: a package is missing, or the detector cannot be traced.
    """
    try:
        import onnx_ir
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install 'adlight[onnx]'") from error
    image = torch.tensor([threshold.image for threshold in thresholds], dtype=torch.float64)
    pixel = torch.tensor([threshold.pixel for threshold in thresholds], dtype=torch.float32)
    inputs = make_example(channels, size), torch.zeros(EXAMPLE, dtype=torch.long), image, pixel
    graph, batch = DetectorGraph(detector.eval().requires_grad_(False)), {0: torch.export.Dim("batch")}
    with torch.no_grad():
        graph(*inputs)  # fills caches with values that a trace could not compute
        try:
            with _quietly():
                program = torch.onnx.export(
                    graph,
                    inputs,
                    input_names=INPUTS,
                    output_names=OUTPUTS,
                    dynamo=True,
                    dynamic_shapes=(batch, batch, None, None),
                )
        except torch.onnx.OnnxExporterError as error:
            reason = first_line(error.__cause__ or error)
            raise UserError(f"{type(detector).__name__} cannot be exported: {reason}") from error
    assert program is not None
    defaults = {INPUTS[2]: image, INPUTS[3]: pixel}
    for value in program.model.graph.inputs:
        if value.name in defaults:
            value.const_value = onnx_ir.tensor(np.asarray(defaults[value.name]), name=value.name)
            program.model.graph.register_initializer(value)
    return program.model
