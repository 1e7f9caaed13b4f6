"""Regions of an anomaly map: where an anomalous image is defective."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from adlight.metrics.thresholds import Threshold
from adlight.types import Box

NEIGHBOURS = np.ones((3, 3))  # regions are 8-connected


def segment(
    pixel: np.ndarray,
    score: Sequence[float],
    thresholds: Sequence[Threshold],
    content: np.ndarray,
    min_area: float = 0.0,
) -> tuple[np.ndarray, list[float]]:
    """Mark the regions of anomalous images; a normal one has none. -> masks (B, H, W) bool, shares of the content (B,).

    Args:
        pixel: anomaly maps (B, H, W) float32.
        score: of the images.
        thresholds: one an image.
        content: (B, H, W) bool, what is no padding.
        min_area: see `find_regions`.
    """
    maps, inside = np.where(content, pixel, -np.inf).astype(np.float32), content.sum((1, 2)).tolist()
    masks = np.zeros(maps.shape, dtype=bool)
    for i, (own, value) in enumerate(zip(thresholds, score, strict=True)):
        if value > own.image:
            masks[i] = find_regions(maps[i], own, min_area * inside[i])
    return masks, [float(mask.sum() / total) for mask, total in zip(masks, inside, strict=True)]


def find_regions(pixel: np.ndarray, threshold: Threshold, min_pixels: float = 0.0) -> np.ndarray:
    """Find the regions above the pixel threshold whose peak is above what normal images show, and the strongest one.

    Where no pixel is above it, the region is the peak itself.

    Args:
        pixel: anomaly map (H, W).
        threshold: of pixels, and of the peaks of regions.
        min_pixels: regions of fewer pixels do not count.

    Returns:
        (H, W) bool, with at least one region.
    """
    labelled, count = ndimage.label(pixel > np.float32(threshold.pixel), NEIGHBOURS)
    if not count:
        return pixel >= pixel.max()
    marked = labelled > 0
    peaks = np.full(count, -np.inf, dtype=pixel.dtype)
    np.maximum.at(peaks, labelled[marked] - 1, pixel[marked])
    kept = np.bincount(labelled[marked] - 1) >= min_pixels
    if threshold.region is not None:
        kept &= peaks > np.float32(threshold.region)
    kept[peaks.argmax()] = True
    return np.concatenate([[False], kept])[labelled]


def bounding_boxes(mask: np.ndarray) -> list[Box]:
    """Find the boxes (left, top, right, bottom; the last two exclusive) of 8-connected regions, largest first.

    mask: (H, W) bool -> boxes in pixels of the mask.
    """
    labelled, _ = ndimage.label(mask, NEIGHBOURS)
    boxes = [(columns.start, rows.start, columns.stop, rows.stop) for rows, columns in ndimage.find_objects(labelled)]
    return sorted(boxes, key=lambda box: (box[0] - box[2]) * (box[3] - box[1]))
