"""Regions of anomalous images, described by the residual features of their cells.

Letters: n tiles of an image (1 if it is not tiled), H x W pixels, h x w cells, D features of a cell.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from adlight.data.datamodule import AnomalyDataModule
from adlight.data.frames import content_of, scale_box
from adlight.data.tiling import Tiling
from adlight.detection.categories import CategoryRule
from adlight.detection.joining import TileJoiner
from adlight.detection.module import AnomalyModule
from adlight.detection.regions import NEIGHBOURS, segment
from adlight.learning.cells import Cells, measure_coverage, select_defect_cells, to_arrays
from adlight.learning.scoring import score_images
from adlight.types import Box, Record

PER_IMAGE = 3  # regions, those with the highest peaks


class Region(NamedTuple):
    """A region that a detector found."""

    record: Record  # its image
    box: Box  # in pixels of the resized image or, if it is tiled, of the original
    peak: float
    features: np.ndarray  # (D,), mean over its cells


def find_regions_of(
    module: AnomalyModule,
    records: Sequence[Record],
    data: AnomalyDataModule,
    precision: str,
    rule: CategoryRule | None = None,
) -> list[Region]:
    """Find and describe the regions of images that are labelled anomalous, or that a detector calls anomalous.

    Args:
        module: Detector with its weights and thresholds.
        records: Images.
        data: Data module whose source, frame, tiles and region of interest are used.
        precision: Precision of the trainer.
        rule: Determines an image's category; None uses that of its record.
    """
    regions = list[Region]()
    for record, batch, scores, cells in score_images(module, records, data.source, data, precision):
        ((whole, joined),) = TileJoiner(data.tiling)(batch, scores)
        if rule is not None:
            name = rule([Path(record.path)], *to_arrays(whole))[0]
            record = record._replace(category=name or "")
        threshold = module.calibration.of(record.category or None)
        if record.label:  # has a region whatever its score
            threshold = threshold._replace(image=-math.inf)
        maps, content = joined["pixel"].numpy(), content_of(whole).numpy()  # (1, H, W) each
        masks, _ = segment(maps, joined["image"].tolist(), [threshold], content, module.calibration)
        corners = batch["tile"][:, 1:3].tolist() if data.tiling else None
        regions += _describe(record, masks[0], maps[0], cells, data.tiling, corners)
    return regions


def _describe(
    record: Record,
    mask: np.ndarray,
    pixel: np.ndarray,
    cells: Cells,
    tiling: Tiling | None,
    corners: list[tuple[int, int]] | None,
) -> list[Region]:
    labelled, count = ndimage.label(mask, NEIGHBOURS)
    peaks = ndimage.maximum(pixel, labelled, range(1, count + 1))
    boxes = ndimage.find_objects(labelled)
    regions = []
    for i in np.argsort(-np.asarray(peaks), kind="stable")[:PER_IMAGE].tolist():
        inside = labelled == i + 1  # (H, W)
        parts = inside[None] if tiling is None else np.stack([tiling.cut(inside, corner) for corner in corners or ()])
        covered = measure_coverage(torch.from_numpy(parts), *cells.score.shape[1:])  # (n, h, w)
        features = select_defect_cells(cells, covered, 0.0).mean(0).numpy()
        rows, columns = boxes[i]
        regions.append(Region(record, (columns.start, rows.start, columns.stop, rows.stop), float(peaks[i]), features))
    return regions


def crop(region: Region, data: AnomalyDataModule, margin: float = 0.5) -> np.ndarray:
    """Cut a region and its surroundings out of its image, as (h, w, 3) uint8."""
    image, frame = data.source.read(region.record), data.frame
    left, top, right, bottom = region.box
    if data.tiling is None:
        height, width = frame.fit(*image.size)
        cut = (0, 0) if frame.keep_shape else ((width - frame.size[1]) // 2, (height - frame.size[0]) // 2)
        left, top, right, bottom = (side + cut[i % 2] for i, side in enumerate(region.box))
        left, top, right, bottom = scale_box((left, top, right, bottom), (height, width), image.size)
    extra = int(margin * max(right - left, bottom - top)) + 8
    whole = left - extra, top - extra, right + extra, bottom + extra
    limits = image.size * 2
    left, top, right, bottom = (min(max(side, 0), most) for side, most in zip(whole, limits, strict=True))
    return np.asarray(image.convert("RGB").crop((left, top, right, bottom)))


def stack_features(regions: Sequence[Region]) -> Tensor:
    """Stack the features of regions. -> (n, D)."""
    return torch.from_numpy(np.stack([region.features for region in regions]))
