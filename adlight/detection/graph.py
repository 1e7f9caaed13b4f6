"""A detector as one graph: from the pixels of images to scores, maps, masks and decisions."""

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
from adlight.types import UserError

EXAMPLE = 3  # images; of 0 and 1 a trace would make constants


class DetectorGraph(nn.Module):
    """All that stands between an image of the model's size and a decision.

    Args:
        detector: with its weights.
    """

    def __init__(self, detector: AnomalyDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(
        self, image: Tensor, category: Tensor, image_thresholds: Tensor, pixel_thresholds: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Judge images.

        Args:
            image: (B, C, H, W) uint8.
            category: (B,) int64, positions in the thresholds.
            image_thresholds: (K,) float64.
            pixel_thresholds: (K,) float32.

        Returns:
            Scores (B,), maps (B, H, W), masks (B, H, W) bool of the pixels above the threshold in anomalous images, at
            least the largest one, and decisions (B,) bool.
        """
        scores = self.detector.score(make_batch(image))
        score, pixel = scores["image"], scores["pixel"].float()  # (B,), (B, H, W)
        decision = score.double() > image_thresholds[category]  # (B,)
        above = pixel > pixel_thresholds[category][:, None, None]  # (B, H, W)
        peak = pixel.amax((1, 2), keepdim=True)  # (B, 1, 1)
        alone = (pixel >= peak) & (peak <= pixel_thresholds[category][:, None, None])  # (B, H, W)
        return score, pixel, (above | alone) & decision[:, None, None], decision


def make_example(channels: int, size: tuple[int, int], count: int = EXAMPLE) -> Tensor:
    """Draw images to trace with. -> (B, C, H, W) uint8."""
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, *size), dtype=torch.uint8, generator=rng)


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence what the exporter says of every step."""
    loggers = [logging.getLogger(name) for name in ("onnx_ir", "onnxscript", "torch.onnx")]
    levels = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


def export_graph(
    detector: AnomalyDetector, channels: int, size: tuple[int, int], thresholds: Sequence[Threshold]
) -> Any:
    """Trace a detector and translate it to ONNX; its thresholds are inputs with defaults. -> onnx_ir's model.

    Args:
        detector: with its weights, on the CPU.
        channels: C.
        size: (H, W).
        thresholds: by position.

    Raises:
        UserError: the packages are missing, or the detector does what cannot be traced.
    """
    try:
        import onnx_ir
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install 'adlight[onnx]'") from error
    image = torch.tensor([one.image for one in thresholds], dtype=torch.float64)
    pixel = torch.tensor([one.pixel for one in thresholds], dtype=torch.float32)
    inputs = make_example(channels, size), torch.zeros(EXAMPLE, dtype=torch.long), image, pixel
    graph, batch = DetectorGraph(detector.eval().requires_grad_(False)), {0: torch.export.Dim("batch")}
    with torch.no_grad():
        graph(*inputs)  # what is drawn or computed once is there before the trace, which could not compute it
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
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise UserError(f"{type(detector).__name__} cannot be exported: {reason}") from error
    assert program is not None
    for value in program.model.graph.inputs:
        if value.name in INPUTS[2:]:
            found = image if value.name == INPUTS[2] else pixel
            value.const_value = onnx_ir.tensor(np.asarray(found), name=value.name)
            program.model.graph.register_initializer(value)
    return program.model
