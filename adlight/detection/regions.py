"""Regions of an anomaly map: where an anomalous image is defective."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from adlight.metrics.thresholds import Calibration, Threshold
from adlight.types import Box

NEIGHBOURS = np.ones((3, 3))  # regions are 8-connected


def segment(
    pixel: np.ndarray,
    score: Sequence[float],
    thresholds: Sequence[Threshold],
    content: np.ndarray,
    calibration: Calibration,
) -> tuple[np.ndarray, list[float]]:
    """Mark the regions of anomalous images; a normal one has none. -> masks (B, H, W) bool, shares of the content (B,).

    Args:
        pixel: anomaly maps (B, H, W) float32.
        score: of the images.
        thresholds: one an image.
        content: (B, H, W) bool, what is no padding.
        calibration: its `min_area`, of the content, and `closing` decide what a region is.
    """
    maps, inside = np.where(content, pixel, -np.inf).astype(np.float32), content.sum((1, 2)).tolist()
    masks = np.zeros(maps.shape, dtype=bool)
    for i, (own, value) in enumerate(zip(thresholds, score, strict=True)):
        if value > own.image:
            masks[i] = find_regions(maps[i], own, calibration.min_area * inside[i], calibration.closing)
    return masks, [float(mask.sum() / total) for mask, total in zip(masks, inside, strict=True)]


def find_regions(pixel: np.ndarray, threshold: Threshold, min_pixels: float = 0.0, closing: float = 0.0) -> np.ndarray:
    """Find the regions above the pixel threshold whose peak is above what normal images show, and the strongest one.

    Where no pixel is above it, the region is the peak itself.

    Args:
        pixel: anomaly map (H, W); -inf where nothing may be marked.
        threshold: of pixels, and of the peaks of regions.
        min_pixels: regions of fewer pixels do not count.
        closing: radius in pixels, see `close_gaps`.

    Returns:
        (H, W) bool, with at least one region.
    """
    above = pixel > np.float32(threshold.pixel)
    if closing > 0 and above.any():
        above = close_gaps(above, closing) & (pixel > -np.inf)
    labelled, count = ndimage.label(above, NEIGHBOURS)
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


def close_gaps(mask: np.ndarray, radius: float) -> np.ndarray:
    """Fill what no disk of a radius in pixels fits into without touching the mask (a morphological closing).

    (H, W) bool -> the same. By two distance transforms, whose time does not grow with the radius.
    """
    margin = int(np.ceil(radius)) + 1  # beyond the image nothing is marked
    padded = np.pad(mask, margin)
    dilated = ndimage.distance_transform_edt(~padded) <= radius
    closed = ndimage.distance_transform_edt(dilated) > radius
    return closed[margin:-margin, margin:-margin] | mask


def bounding_boxes(mask: np.ndarray) -> list[Box]:
    """Find the boxes (left, top, right, bottom; the last two exclusive) of 8-connected regions, largest first.

    mask: (H, W) bool -> boxes in pixels of the mask.
    """
    labelled, _ = ndimage.label(mask, NEIGHBOURS)
    boxes = [(columns.start, rows.start, columns.stop, rows.stop) for rows, columns in ndimage.find_objects(labelled)]
    return sorted(boxes, key=lambda box: (box[0] - box[2]) * (box[3] - box[1]))
