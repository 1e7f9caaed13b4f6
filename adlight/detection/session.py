"""Exported detectors in ONNX Runtime, without PyTorch, and their deviation from the original detector."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adlight.detection.classifier import CategoryClassifier
from adlight.metrics.thresholds import Calibration
from adlight.types import ScoredImages, Scorer, UserError

INPUTS = ("image", "category", "image_thresholds", "pixel_thresholds")
OUTPUTS = ("score", "map", "mask", "decision")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
POOLED = -1  # index of the thresholds of all categories together, which come last
ERRORS_ONLY = 3  # log level; ONNX Runtime warns about the thresholds, which are inputs with defaults

Pixels = tuple[np.ndarray, list[str | None]]  # images (B, C, H, W) uint8, and their categories


class GraphDetector:
    """Scores pixels with an exported graph; any number of threads may share it.

    The device is `cpu`, `cuda`, `cuda:1`, ...; `auto` prefers a GPU if ONNX Runtime supports it.

    Attributes:
        session: the session of ONNX Runtime.
        metadata: the strings stored in the graph.

    Raises:
        UserError: onnxruntime or the device is missing, or the file is not an exported detector.
    """

    takes_padding = False

    def __init__(
        self, path: Path, calibration: Calibration, classifier: CategoryClassifier, device: str = "auto"
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError("onnxruntime is not installed: pip install 'adlight[onnx]'") from error
        self.calibration, self.classifier, self._arguments = calibration, classifier, (Path(path).absolute(), device)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        providers = _find_providers(device, onnxruntime.get_available_providers())
        try:
            self.session: Any = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # ONNX Runtime has a separate class for every kind of damage
            raise UserError(
                f"{path} cannot be read as an ONNX graph ({type(error).__name__}): export it again"
            ) from error
        self.metadata: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        if [output.name for output in self.session.get_outputs()] != list(OUTPUTS):
            raise UserError(f"{path} is not a graph that adlight export wrote")

    def __reduce__(self) -> tuple[Any, ...]:
        path, device = self._arguments
        return GraphDetector, (path, self.calibration, self.classifier, device)  # a copy opens its own session

    def make_scorer(self, precision: str, device: Any) -> Scorer:
        """Return this detector itself; a graph's precision and device are fixed."""
        return self

    def __call__(
        self,
        pixels: np.ndarray,
        size: np.ndarray | None = None,
        reconstruct: bool = False,
        content: np.ndarray | None = None,
    ) -> ScoredImages:
        """Score images (B, C, H, W) uint8; graphs return no reconstructions and ignore regions of interest."""
        feed = {"image": pixels, "category": np.full(len(pixels), POOLED)}
        score, pixel = self.session.run(list(OUTPUTS[:2]), feed)
        return ScoredImages(score.astype(np.float64), pixel)


def _find_providers(device: str, available: list[str]) -> list[Any]:
    kind, _, number = device.partition(":")
    if kind == "auto":
        return [provider for provider in (PROVIDERS["cuda"], PROVIDERS["cpu"]) if provider in available]
    if PROVIDERS.get(kind) not in available:
        raise UserError(f"device={device} is not supported by this onnxruntime, only {', '.join(available)}")
    return [(PROVIDERS[kind], {"device_id": int(number)}) if number.isdecimal() else PROVIDERS[kind]]


class Parity(NamedTuple):
    """Differences between a graph and the detector it was exported from."""

    images: int
    score: float  # largest difference, relative to the score or to the median score, whichever is larger
    decisions: int  # number of images with different decisions
    pixels: float  # fraction of different mask pixels

    def __str__(self) -> str:
        return (
            f"{self.images} images: largest relative difference of a score {self.score:.1e}, different decisions "
            f"{self.decisions}, different pixels of masks {self.pixels:.1e} of all"
        )


def measure_parity(scorer: Scorer, graph: GraphDetector, calibration: Calibration, batches: Iterator[Pixels]) -> Parity:
    """Compare a graph with the detector's scorer and calibration."""
    names = list(calibration.categories)
    expected, actual, mask_errors, decisions = list[np.ndarray](), list[np.ndarray](), list[float](), 0
    for image, categories in batches:
        position = np.array([names.index(name) if name in names else len(names) for name in categories])
        score, _, mask, decision = graph.session.run(None, {"image": image, "category": position})
        scores, thresholds = scorer(image, None), [calibration.of(name) for name in categories]
        anomalous = scores.image > np.array([threshold.image for threshold in thresholds])  # (B,)
        limits = np.array([threshold.pixel for threshold in thresholds])  # (B,)
        expected_mask = anomalous[:, None, None] & _mask_pixels(scores.pixel, limits)  # (B, H, W)
        expected.append(scores.image)
        actual.append(score.astype(np.float64))
        decisions += int((anomalous != decision).sum())
        mask_errors += (expected_mask != mask).mean((1, 2)).tolist()
    own, other = np.concatenate(expected), np.concatenate(actual)  # (N,) each
    difference = np.abs(own - other) / np.maximum(np.abs(own), np.median(np.abs(own)))
    return Parity(len(own), float(difference.max()), decisions, float(np.mean(mask_errors)))


def _mask_pixels(pixel: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """Mask pixels above each image's threshold (B,), or else the peak. (B, H, W) float32 -> (B, H, W) bool."""
    limit, peak = threshold.astype(np.float32)[:, None, None], pixel.max((1, 2), keepdims=True)
    return (pixel > limit) | ((pixel >= peak) & (peak <= limit))
