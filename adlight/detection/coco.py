"""Regions in COCO's detection format (Lin 2014), which annotation tools and pycocotools read."""

from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from adlight.detection.regions import NEIGHBOURS


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
    height, width = mask.shape
    values = Image.fromarray(anomaly_map.astype(np.float32)).resize((width, height), Image.Resampling.NEAREST)
    labelled, _ = ndimage.label(mask, NEIGHBOURS)
    annotations = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labelled), 1):
        region, corner = labelled[rows, columns] == number, (rows.start, columns.start)
        value = np.asarray(values.crop((columns.start, rows.start, columns.stop, rows.stop)))[region]
        annotations.append(
            {
                "bbox": [corner[1], corner[0], region.shape[1], region.shape[0]],
                "area": int(region.sum()),
                "score": float(value.max()),
                "segmentation": {"size": [height, width], "counts": encode_rle(region, corner, height, width)},
            }
        )
    return annotations


def encode_rle(region: np.ndarray, corner: tuple[int, int], height: int, width: int) -> list[int]:
    """Encode part of a mask as run lengths of alternating zeros and ones, column by column.

    Args:
        region: (h, w) bool, with at least one pixel.
        corner: top row and left column of the part in the whole mask.
        height: height of the whole mask.
        width: width of the whole mask.
    """
    columns, rows = region.T.nonzero()
    position = (columns + corner[1]) * height + rows + corner[0]  # (N,), ascending
    gap = np.diff(position) > 1  # (N - 1,)
    starts = np.concatenate([position[:1], position[1:][gap]])
    ends = np.concatenate([position[:-1][gap], position[-1:]]) + 1
    edges = np.stack([starts, ends], 1).ravel()
    counts = np.diff(np.concatenate([[0], edges, [height * width]])).tolist()
    return counts if counts[-1] else counts[:-1]
