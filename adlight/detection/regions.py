"""Regions of an anomaly map: where an anomalous image is defective, as masks, as boxes and in COCO's format."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from adlight.data.arrays import allocate, bands
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
    """Mask the regions of B anomalous images; normal images have none.

    Args:
        pixel: anomaly maps (B, H, W) float32.
        score: image scores (B,).
        thresholds: one per image.
        content: (B, H, W) bool, the pixels that are neither padding nor outside the region of interest.
        calibration: its `min_area`, a fraction of the content, and `closing` define what counts as a region.

    Returns:
        Masks (B, H, W) bool, and the fractions of the content that they cover (B,).
    """
    maps = np.asarray(pixel, np.float32)
    masks, num_pixels = allocate(maps.shape, bool), content.sum((1, 2)).tolist()
    if not content.all():
        inside = allocate(maps.shape, np.float32)
        inside[...] = -np.inf
        np.copyto(inside, maps, where=content)
        maps = inside
    for i, threshold in enumerate(thresholds):
        if score[i] > threshold.image:
            masks[i] = find_regions(maps[i], threshold, calibration.min_area * num_pixels[i], calibration.closing)
    return masks, [float(mask.sum() / total) for mask, total in zip(masks, num_pixels, strict=True)]


def find_regions(pixel: np.ndarray, threshold: Threshold, min_pixels: float = 0.0, closing: float = 0.0) -> np.ndarray:
    """Find the regions of a map (H, W) whose peaks exceed the region threshold, and always the strongest region.

    Regions are above the pixel threshold; if no pixel is, the only region is the peak. After `closing` (see
    `close_gaps`), regions smaller than `min_pixels` are dropped, except the strongest. Pixels of -inf are never masked.
    -> (H, W) bool.
    """
    mask = np.greater(pixel, np.float32(threshold.pixel), out=allocate(pixel.shape, bool))
    if closing > 0 and mask.any():
        mask = close_gaps(mask, closing)
        for rows in bands(mask.shape):
            mask[rows] &= pixel[rows] > -np.inf
    labelled, count = label_regions(mask)
    if not count:
        return np.greater_equal(pixel, pixel.max(), out=mask)
    areas, peaks = measure_regions(labelled, count, pixel)
    kept = areas >= min_pixels
    if threshold.region is not None:
        kept &= peaks > np.float32(threshold.region)
    kept[peaks.argmax()] = True
    kept = np.concatenate([[False], kept])
    for rows in bands(mask.shape):
        mask[rows] = kept[labelled[rows]]
    return mask


def label_regions(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Label the 8-connected regions of a mask (H, W) from 1. -> (H, W) int32, 0 outside; and their number."""
    labelled = allocate(mask.shape, np.int32)
    return labelled, ndimage.label(mask, NEIGHBOURS, output=labelled)


def measure_regions(labelled: np.ndarray, count: int, pixel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measure the labelled regions of an anomaly map (H, W). -> areas in pixels and peaks, (count,) each."""
    areas, peaks = np.zeros(count, np.int64), np.full(count, -np.inf, dtype=pixel.dtype)
    for rows in bands(labelled.shape):
        inside = labelled[rows] > 0
        region = labelled[rows][inside] - 1  # (n,)
        np.add.at(areas, region, 1)
        np.maximum.at(peaks, region, pixel[rows][inside])
    return areas, peaks


def close_gaps(mask: np.ndarray, radius: float) -> np.ndarray:
    """Fill gaps in a mask into which no disk of `radius` pixels fits (morphological closing). (H, W) bool -> the same.

    Two distance transforms are used, so that the time does not depend on the radius.
    """
    margin, closed = int(np.ceil(radius)) + 1, allocate(mask.shape, bool)
    for rows in bands(mask.shape, least=4 * margin):
        top = max(0, rows.start - 2 * margin)  # pixels further away have no influence on these rows
        part = mask[top : rows.stop + 2 * margin]
        if part.any():
            padded = np.pad(part, margin)  # beyond the image, nothing is masked
            dilated = ndimage.distance_transform_edt(~padded) <= radius
            filled = ndimage.distance_transform_edt(dilated) > radius
            filled = filled[margin:-margin, margin:-margin] | part
            closed[rows] = filled[rows.start - top : rows.stop - top]
    return closed


def bounding_boxes(mask: np.ndarray) -> list[Box]:
    """Find the bounding boxes of 8-connected regions, largest first. (H, W) bool -> boxes in pixels of the mask."""
    labelled, _ = label_regions(mask)
    boxes = [(columns.start, rows.start, columns.stop, rows.stop) for rows, columns in ndimage.find_objects(labelled)]
    return sorted(boxes, key=lambda box: (box[0] - box[2]) * (box[3] - box[1]))


def annotate(mask: np.ndarray, anomaly_map: np.ndarray) -> list[dict[str, Any]]:
    """Describe the regions of a mask (H, W) bool from top to bottom in COCO's detection format (Lin 2014).

    Returns:
        One dict per 8-connected region: `bbox` [left, top, width, height], `area` in pixels, `score` (its peak in the
        anomaly map (h, w)) and `segmentation`, an uncompressed RLE with `size` [H, W] and `counts`.
    """
    if not mask.any():
        return []
    (height, width), values = mask.shape, np.asarray(anomaly_map, np.float32)
    if values.shape != mask.shape:
        values = np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST))
    labelled, count = label_regions(mask)
    areas, peaks = measure_regions(labelled, count, values)
    annotations = []
    for i, (rows, columns) in enumerate(ndimage.find_objects(labelled)):
        region, corner = labelled[rows, columns], (rows.start, columns.start)
        annotations.append(
            {
                "bbox": [corner[1], corner[0], region.shape[1], region.shape[0]],
                "area": int(areas[i]),
                "score": float(peaks[i]),
                "segmentation": {"size": [height, width], "counts": encode_rle(region, corner, height, width, i + 1)},
            }
        )
    return annotations


def encode_rle(labelled: np.ndarray, corner: tuple[int, int], height: int, width: int, number: int = 1) -> list[int]:
    """Encode region `number` as run lengths of alternating zeros and ones, column by column.

    `labelled` (h, w) is a part of the mask of `height` x `width`, with its top row and left column at `corner`.
    """
    (top, left), edges = corner, list[np.ndarray]()
    for columns in bands(labelled.shape[::-1]):
        inside = np.pad(labelled[:, columns] == number, ((1, 1), (0, 0)))  # every run ends within its column
        column, row = np.diff(inside, axis=0).T.nonzero()
        edges.append((column + columns.start + left) * height + row + top)
    position, times = np.unique(np.concatenate(edges), return_counts=True)
    position = position[times == 1]  # where one run ends and the next begins, in the next column, they are one
    counts = np.diff(position, prepend=0, append=height * width).tolist()
    return counts if counts[-1] else counts[:-1]
