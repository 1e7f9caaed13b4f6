"""From an image's score and maps to its prediction."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from adlight.data.frames import scale_box
from adlight.data.images import PreparedImage
from adlight.detection.regions import bounding_boxes
from adlight.metrics.thresholds import Threshold
from adlight.types import Prediction


def describe_image(
    image: PreparedImage, used: Threshold, score: float, area: float, maps: Sequence[np.ndarray]
) -> Prediction:
    """Say all that is known of an image; `maps`: its mask, its anomaly map and, if there is one, its reconstruction."""
    mask, anomaly_map, *pictures = maps
    return Prediction(
        *(score, used.image, used.pixel, used.source, area),
        boxes=[scale_box(box, mask.shape, image.size) for box in bounding_boxes(mask)],
        mask=np.asarray(Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST)),
        anomaly_map=anomaly_map,
        reconstruction=pictures[0] if pictures else None,
        path=None if image.path is None else str(image.path),
    )
