"""Regions of anomalous images, described by what is unusual about their cells.

Letters: h x w cells, D features of a cell.
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
from adlight.data.dataset import CachedImageDataset
from adlight.data.frames import content_of, scale_box
from adlight.detection.categories import CategoryRule
from adlight.detection.crossfitting import fetch
from adlight.detection.inference import autocast_dtype, inference
from adlight.detection.module import AnomalyModule
from adlight.detection.regions import NEIGHBOURS, segment
from adlight.learning.evidence import Evidence, evidence_of, share_of_cells, to_arrays
from adlight.learning.head import COVERED
from adlight.metrics.thresholds import Calibration, Threshold
from adlight.types import Box, Record

BATCH = 16
PER_IMAGE = 3  # regions, those with the highest peaks


class Region(NamedTuple):
    """A region that a detector found."""

    record: Record  # its image
    box: Box  # in pixels of the image as it is resized
    peak: float
    features: np.ndarray  # (D,), mean over its cells


def find_regions_of(
    module: AnomalyModule,
    records: Sequence[Record],
    data: AnomalyDataModule,
    precision: str,
    rule: CategoryRule | None = None,
) -> list[Region]:
    """Find and describe the regions of images that a detector calls anomalous, or that are labelled so.

    Args:
        module: with its weights and thresholds.
        records: the images.
        data: whose source and frame they are read by.
        precision: the trainer's.
        rule: finds an image's category; None: its record has it.
    """
    known, found = sorted({record.category for record in records}), list[Region]()
    settings = {"frame": data.frame, "channels": data.channels, "cache": False, "roi": data.roi}
    images = CachedImageDataset(data.source, records, known, **settings)  # type: ignore[arg-type]
    module.eval()
    for index in torch.arange(len(records)).split(BATCH):
        some = [records[i] for i in index.tolist()]
        with inference(module.device, autocast_dtype(precision)):
            batch = fetch(images, index, module.device)
            scores = module.score(batch)
            evidence = Evidence(*(one.cpu() for one in evidence_of(batch, scores)))
            names = [one.category for one in some]
            if rule is not None:
                found_names = rule([Path(one.path) for one in some], *to_arrays(batch))
                names = [name or "" for name in found_names]
            used = [_threshold(module.calibration, *pair) for pair in zip(some, names, strict=True)]
            maps, content = scores["pixel"].float().cpu().numpy(), content_of(batch).cpu().numpy()
            masks, _ = segment(maps, scores["image"].tolist(), used, content, module.calibration)
        for i, record in enumerate(some):
            own = Evidence(evidence.score[i], evidence.features[i])
            found += _describe(record._replace(category=names[i]), masks[i], maps[i], own)
    return found


def _threshold(calibration: Calibration, record: Record, category: str) -> Threshold:
    """Look up an image's thresholds; one that is known to be anomalous has a region whatever its score."""
    found = calibration.of(category or None)
    return found._replace(image=-math.inf) if record.label else found


def _describe(record: Record, mask: np.ndarray, pixel: np.ndarray, found: Evidence) -> list[Region]:
    labelled, _ = ndimage.label(mask, NEIGHBOURS)
    regions = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labelled), 1):
        inside = labelled == number
        covered = share_of_cells(torch.from_numpy(inside)[None], *found.score.shape)[0].where(
            ~found.score.isnan(), -torch.inf
        )
        features = found.features[covered >= min(COVERED, float(covered.max()))].mean(0).numpy()
        box = (columns.start, rows.start, columns.stop, rows.stop)
        regions.append(Region(record, box, float(pixel[inside].max()), features))
    return sorted(regions, key=lambda one: -one.peak)[:PER_IMAGE]


def crop(region: Region, data: AnomalyDataModule, margin: float = 0.5) -> np.ndarray:
    """Cut a region with some of what is around it out of its image, as (h, w, 3) uint8."""
    image, frame = data.source.read(region.record), data.frame
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
    return torch.from_numpy(np.stack([one.features for one in regions]))
