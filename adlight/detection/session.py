"""An exported detector in ONNX Runtime: no PyTorch."""

from pathlib import Path
from typing import Any

import numpy as np

from adlight.detection.categories import CategoryClassifier
from adlight.metrics.thresholds import Calibration
from adlight.types import ScoredImages, Scorer, UserError

INPUTS = ("image", "category", "image_thresholds", "pixel_thresholds")
OUTPUTS = ("score", "map", "mask", "decision")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
POOLED = -1  # position of the thresholds of all categories together, the last ones
SILENT = 3  # of ONNX Runtime's warnings; it would warn of every threshold that can be set


class GraphDetector:
    """Scores pixels by a graph; it does no more than score, and any number of threads may share it.

    Args:
        path: of the graph.
        calibration: its thresholds.
        classifier: tells its categories apart.
        device: `cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU if ONNX Runtime can.

    Attributes:
        calibration, classifier: likewise.
        session: of ONNX Runtime.
        metadata: texts that were written into the graph.

    Raises:
        UserError: onnxruntime or the device is missing, or the file is no such graph.
    """

    takes_padding = False

    def __init__(
        self, path: Path, calibration: Calibration, classifier: CategoryClassifier, device: str = "auto"
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError("onnxruntime is not installed: pip install 'adlight[onnx]'") from error
        self.calibration, self.classifier = calibration, classifier
        options = onnxruntime.SessionOptions()
        options.log_severity_level = SILENT
        providers = _find_providers(device, onnxruntime.get_available_providers())
        try:
            self.session: Any = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # it raises a class of its own for every kind of damage
            raise UserError(
                f"{path} cannot be read as an ONNX graph ({type(error).__name__}): export it again"
            ) from error
        self.metadata: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        if [one.name for one in self.session.get_outputs()] != list(OUTPUTS):
            raise UserError(f"{path} is not a graph that adlight.export wrote")

    def make_scorer(self, precision: str, device: Any) -> Scorer:
        """Give itself, as the graph knows its precision and the session its device."""
        return self

    def __call__(
        self,
        pixels: np.ndarray,
        size: np.ndarray | None = None,
        reconstruct: bool = False,
        content: np.ndarray | None = None,
    ) -> ScoredImages:
        """Score images (B, C, H, W) uint8; a graph makes no reconstructions, and takes no regions of interest."""
        feed = {"image": pixels, "category": np.full(len(pixels), POOLED)}
        score, pixel = self.session.run(list(OUTPUTS[:2]), feed)
        return ScoredImages(score.astype(np.float64), pixel)


def _find_providers(device: str, available: list[str]) -> list[Any]:
    kind, _, number = device.partition(":")
    if kind == "auto":
        return [one for one in (PROVIDERS["cuda"], PROVIDERS["cpu"]) if one in available]
    if PROVIDERS.get(kind) not in available:
        raise UserError(f"device={device} cannot be used by this onnxruntime, which has {', '.join(available)}")
    return [(PROVIDERS[kind], {"device_id": int(number)}) if number.isdecimal() else PROVIDERS[kind]]
