"""How much a graph's answers differ from those of the detector that it was made of."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from adlight.detection.session import GraphDetector
from adlight.metrics.thresholds import Calibration
from adlight.types import Scorer

Pixels = tuple[np.ndarray, list[str | None]]  # images (B, C, H, W) uint8, and their categories


class Parity(NamedTuple):
    """How a graph's answers differ from the run's own."""

    images: int
    score: float  # largest difference, relative to the score or, where it is larger, the median one
    decisions: int  # images
    pixels: float  # share of the masks

    def __str__(self) -> str:
        return (
            f"{self.images} images: largest relative difference of a score {self.score:.1e}, different decisions "
            f"{self.decisions}, different pixels of masks {self.pixels:.1e} of all"
        )


def compare(own: Scorer, graph: GraphDetector, calibration: Calibration, batches: Iterator[Pixels]) -> Parity:
    """Compare a graph with the scores and thresholds of the detector that it was made of.

    Args:
        own: the detector's scorer.
        graph: its graph.
        calibration: its thresholds.
        batches: of images.
    """
    names, pairs, pixels, decisions = list(calibration.categories), [], [], 0
    for image, categories in batches:
        place = np.array([names.index(name) if name in names else len(names) for name in categories])
        score, _, mask, decision = graph.session.run(None, {"image": image, "category": place})
        found, used = own(image, None), [calibration.of(name) for name in categories]
        anomalous = found.image > np.array([one.image for one in used])  # (B,)
        marked = anomalous[:, None, None] & _above(found.pixel, np.array([one.pixel for one in used]))
        pairs.append(np.stack([found.image, score.astype(np.float64)]))
        decisions += int((anomalous != decision).sum())
        pixels += (marked != mask).mean((1, 2)).tolist()
    mine, other = np.abs(np.concatenate(pairs, 1)[0]), np.concatenate(pairs, 1)
    largest = np.abs(other[0] - other[1]) / np.maximum(mine, np.median(mine))
    return Parity(len(mine), float(largest.max()), decisions, float(np.mean(pixels)))


def _above(pixel: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """Mark pixels above an image's threshold (B,), or else the largest. (B, H, W) float32 -> bool."""
    limit, peak = threshold.astype(np.float32)[:, None, None], pixel.max((1, 2), keepdims=True)
    return (pixel > limit) | ((pixel >= peak) & (peak <= limit))
