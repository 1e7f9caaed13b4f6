"""Regions in COCO's detection format (Lin 2014), which annotation tools and pycocotools read."""

from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from adlight.data.arrays import bands
from adlight.detection.regions import label_regions, measure_regions


def annotate(mask: np.ndarray, anomaly_map: np.ndarray) -> list[dict[str, Any]]:
    """Describe the regions of a mask from top to bottom, each with box, area, score and pixels.

    Args:
        mask: (H, W) bool, in the image's size.
        anomaly_map: (h, w); a region's score is its largest value there.

    Returns:
        One dict per 8-connected region: `bbox` [left, top, width, height], `area` in pixels, `score` and
        `segmentation`, an uncompressed RLE with `size` [H, W] and `counts`.
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
    """Encode part of a mask as run lengths of alternating zeros and ones, column by column.

    Args:
        labelled: (h, w), in which at least one pixel has the region's number.
        corner: top row and left column of the part in the whole mask.
        height: height of the whole mask.
        width: width of the whole mask.
        number: number of the region; 1 for masks.
    """
    edges, last = list[np.ndarray](), -2
    for columns in bands(labelled.shape[::-1]):
        column, row = (labelled[:, columns] == number).T.nonzero()
        position = (column + columns.start + corner[1]) * height + row + corner[0]  # (n,), ascending
        if len(position):
            previous = np.concatenate([[last], position[:-1]])
            gap = position - previous > 1
            edges.append(np.stack([previous[gap] + 1, position[gap]], 1).ravel())  # the end of a run, the next start
            last = position[-1]
    runs = np.concatenate([*edges, [last + 1]])[1:]  # no run ends before the first
    counts = np.diff(np.concatenate([[0], runs, [height * width]])).tolist()
    return counts if counts[-1] else counts[:-1]
