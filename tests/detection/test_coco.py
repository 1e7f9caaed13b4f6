"""Regions as COCO detections: decoded as pycocotools decodes them, they are the mask again."""

import json

import numpy as np
import pytest
from scipy import ndimage

from adlight.detection.regions import annotate, encode_rle


def decode(segmentation):
    """Runs of zeros and ones in turn, column by column (COCO's maskApi.c, rleDecode)."""
    values = np.arange(len(segmentation["counts"])) % 2
    return np.repeat(values, segmentation["counts"]).reshape(segmentation["size"], order="F").astype(bool)


@pytest.mark.parametrize("pixels", [None, 1, 30])
@pytest.mark.parametrize("seed", range(8))
def test_regions_decode_to_the_mask(seed, pixels, in_bands):
    if pixels:
        in_bands(pixels)
    rng = np.random.default_rng(seed)
    height, width = rng.integers(5, 40, 2)
    mask = ndimage.gaussian_filter(rng.normal(size=(height, width)), 1) > 0.1
    values = rng.normal(size=(height, width)).astype(np.float32)
    found = json.loads(json.dumps(annotate(mask, values)))
    assert len(found) == ndimage.label(mask, np.ones((3, 3)))[1] > 0
    parts = [decode(one["segmentation"]) for one in found]
    assert (sum(part.astype(int) for part in parts) == mask).all()
    for one, part in zip(found, parts, strict=True):
        rows, columns = part.nonzero()
        left, top, w, h = one["bbox"]
        assert (left, top, left + w, top + h) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert one["area"] == part.sum() and one["score"] == values[part].max()


@pytest.mark.parametrize("pixels", [None, 1])
def test_runs_reach_every_border(pixels, in_bands):
    if pixels:
        in_bands(pixels)
    for mask in (np.ones((3, 4), bool), np.eye(3, dtype=bool), np.eye(3, dtype=bool)[::-1]):
        counts = encode_rle(mask, (0, 0), *mask.shape)
        assert sum(counts) == mask.size and 0 not in counts[1:]
        assert (decode({"size": mask.shape, "counts": counts}) == mask).all()
    assert encode_rle(np.ones((1, 1), bool), (1, 2), 3, 4) == [7, 1, 4]


def test_a_score_is_the_peak_of_a_smaller_map():
    mask = np.zeros((8, 8), bool)
    mask[:4, :4] = True
    (region,) = annotate(mask, np.array([[3.0, 9.0], [9.0, 9.0]], np.float32))
    assert (region["score"], region["bbox"], region["area"]) == (3.0, [0, 0, 4, 4], 16)
    assert annotate(np.zeros((8, 8), bool), np.ones((2, 2))) == []
