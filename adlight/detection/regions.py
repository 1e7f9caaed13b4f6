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
    """Mask the regions of anomalous images; normal images have none.

    Args:
        pixel: anomaly maps (B, H, W) float32.
        score: image scores (B,).
        thresholds: one per image.
        content: (B, H, W) bool, the pixels that count: neither padding nor outside the region of interest.
        calibration: its `min_area`, a fraction of the content, and `closing` define what counts as a region.

    Returns:
        Masks (B, H, W) bool and the fractions of the content that they cover (B,).
    """
    maps, num_pixels = np.where(content, pixel, -np.inf).astype(np.float32), content.sum((1, 2)).tolist()
    masks = np.zeros(maps.shape, dtype=bool)
    for i, threshold in enumerate(thresholds):
        if score[i] > threshold.image:
            masks[i] = find_regions(maps[i], threshold, calibration.min_area * num_pixels[i], calibration.closing)
    return masks, [float(mask.sum() / total) for mask, total in zip(masks, num_pixels, strict=True)]


def find_regions(pixel: np.ndarray, threshold: Threshold, min_pixels: float = 0.0, closing: float = 0.0) -> np.ndarray:
    """Find the regions above the pixel threshold whose peak exceeds the region threshold, and always the strongest one.

    If no pixel is above the threshold, the region is the peak itself.

    Args:
        pixel: anomaly map (H, W); -inf where nothing may be masked.
        threshold: thresholds of pixels and of the peaks of regions.
        min_pixels: smaller regions are dropped, except the strongest.
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
    region = labelled[above] - 1  # (n,), the region of each pixel above the threshold
    peaks = np.full(count, -np.inf, dtype=pixel.dtype)
    np.maximum.at(peaks, region, pixel[above])
    kept = np.bincount(region) >= min_pixels
    if threshold.region is not None:
        kept &= peaks > np.float32(threshold.region)
    kept[peaks.argmax()] = True
    return np.concatenate([[False], kept])[labelled]


def close_gaps(mask: np.ndarray, radius: float) -> np.ndarray:
    """Fill gaps in a mask into which no disk of a radius in pixels fits (a morphological closing).

    (H, W) bool -> the same. Uses two distance transforms, so that the time does not depend on the radius.
    """
    margin = int(np.ceil(radius)) + 1  # nothing is masked beyond the image
    padded = np.pad(mask, margin)
    dilated = ndimage.distance_transform_edt(~padded) <= radius
    closed = ndimage.distance_transform_edt(dilated) > radius
    return closed[margin:-margin, margin:-margin] | mask


def bounding_boxes(mask: np.ndarray) -> list[Box]:
    """Find the bounding boxes of 8-connected regions, largest first. (H, W) bool -> boxes in pixels of the mask."""
    labelled, _ = ndimage.label(mask, NEIGHBOURS)
    boxes = [(columns.start, rows.start, columns.stop, rows.stop) for rows, columns in ndimage.find_objects(labelled)]
    return sorted(boxes, key=lambda box: (box[0] - box[2]) * (box[3] - box[1]))
