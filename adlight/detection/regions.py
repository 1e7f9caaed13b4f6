"""Regions of an anomaly map: where it is above its threshold."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from torch import Tensor

from adlight.types import Box


def segment(pixel: Tensor, thresholds: Sequence[float], content: Tensor) -> tuple[np.ndarray, list[float]]:
    """Mark the pixels above each image's threshold. -> masks (B, H, W) bool, and their share of the content (B,).

    Args:
        pixel: anomaly maps (B, H, W).
        thresholds: one an image.
        content: (B, H, W) bool, what is no padding.
    """
    above = pixel > pixel.new_tensor(thresholds)[:, None, None]
    masks = (above & content).cpu().numpy()  # (B, H, W)
    return masks, (masks.sum((1, 2)) / content.sum((1, 2)).cpu().numpy()).tolist()


def bounding_boxes(mask: np.ndarray) -> list[Box]:
    """Find the boxes (left, top, right, bottom; the last two exclusive) of 8-connected regions, largest first.

    mask: (H, W) bool -> boxes in pixels of the mask.
    """
    labelled, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    boxes = [(columns.start, rows.start, columns.stop, rows.stop) for rows, columns in ndimage.find_objects(labelled)]
    return sorted(boxes, key=lambda box: (box[0] - box[2]) * (box[3] - box[1]))
