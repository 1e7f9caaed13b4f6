"""Predictions from scores and maps."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from adlight.data.frames import Frame, find_content, scale_box
from adlight.data.images import PreparedImage
from adlight.data.roi import stack_contents
from adlight.detection.regions import bounding_boxes, segment
from adlight.metrics.thresholds import Calibration, Threshold
from adlight.types import Prediction, ScoredImages


def make_predictions(
    images: Sequence[PreparedImage],
    used: Sequence[Threshold],
    scores: ScoredImages,
    size: np.ndarray | None,
    frame: Frame,
    calibration: Calibration,
) -> list[Prediction]:
    """Find the regions of some images, and say all that is known of each.

    Args:
        images: B of them.
        used: a threshold each.
        scores: theirs.
        size: (B, 2), heights and widths of padded images.
        frame: into which they were brought.
        calibration: says what a region is.
    """
    content = stack_contents(images)
    content = find_content(size, scores.pixel.shape) if content is None else content  # (B, H, W)
    found, areas = segment(scores.pixel, scores.image.tolist(), used, content, calibration)
    maps = [found, scores.pixel, *([] if scores.reconstruction is None else [scores.reconstruction])]
    restored = [[frame.restore(array[i], *one.size) for array in maps] for i, one in enumerate(images)]
    rows = zip(images, used, scores.image.tolist(), areas, restored, strict=True)
    return [make_prediction(*row) for row in rows]


def make_prediction(
    image: PreparedImage, used: Threshold, score: float, area: float, maps: Sequence[np.ndarray]
) -> Prediction:
    """Say all that is known of an image; `maps`: its mask, its anomaly map and, if there is one, its reconstruction."""
    mask, anomaly_map, *pictures = maps
    return Prediction(
        *(score, used.image, used.pixel, used.source, area),
        boxes=[scale_box(box, mask.shape, image.size) for box in bounding_boxes(mask)],
        mask=scale_mask(mask, image.size),
        anomaly_map=anomaly_map,
        reconstruction=pictures[0] if pictures else None,
        path=None if image.path is None else str(image.path),
    )


def scale_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale a mask (H, W) bool to an image of `size` (width, height), rounded outwards: no region is lost."""
    picture = Image.fromarray(mask)
    if size[0] >= picture.width and size[1] >= picture.height:
        return np.asarray(picture.resize(size, Image.Resampling.NEAREST))
    return np.asarray(picture.convert("F").resize(size, Image.Resampling.BOX)) > 0
