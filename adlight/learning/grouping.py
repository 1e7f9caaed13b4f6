"""Regions of anomalous images, described by the residual features of their cells, and groups of similar regions.

Letters: n regions, or n tiles of an image (1 if it is not tiled), H x W pixels, h x w cells, D features, g groups.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy import ndimage

from adlight.data.datamodule import AnomalyDataModule
from adlight.data.frames import content_of, scale_box
from adlight.data.tiling import Tiling
from adlight.detection.categories import CategoryRule
from adlight.detection.gathering import TileJoiner
from adlight.detection.module import AnomalyModule
from adlight.detection.regions import label_regions, measure_regions, segment
from adlight.learning.cells import Cells, measure_coverage, select_defect_cells, to_arrays
from adlight.learning.scoring import score_images
from adlight.types import Box, Record, UserError

PER_IMAGE = 3  # number of regions, chosen by the highest peaks
COMPONENTS, MOST = 20, 10  # principal components; largest number of groups to try
MARGIN = 0.5  # around a region in its picture, as a fraction of the region's longer side
OTHERS = -1  # label of regions in no group, as in HDBSCAN
Method = Literal["kmeans", "hdbscan"]


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
    """Find and describe the regions of images that are labelled anomalous or that the detector calls anomalous.

    `data` provides source, frame, tiles and region of interest; `rule` determines the category of an image, None takes
    the category of its record.
    """
    regions = list[Region]()
    for record, batch, scores, cells in score_images(module, records, data.source, data, precision):
        ((whole, joined),) = TileJoiner(data.tiling)(batch, scores)
        if rule is not None:
            name = rule([Path(record.path)], *to_arrays(whole))[0]
            record = record._replace(category=name or "")
        threshold = module.calibration.of(record.category or None)
        if record.label:  # segmented whatever its score
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
    labelled, count = label_regions(mask)
    _, peaks = measure_regions(labelled, count, pixel)
    boxes = ndimage.find_objects(labelled)
    regions = []
    for i in np.argsort(-peaks, kind="stable")[:PER_IMAGE].tolist():
        inside = labelled == i + 1  # (H, W)
        parts = inside[None] if tiling is None else np.stack([tiling.cut(inside, corner) for corner in corners or ()])
        covered = measure_coverage(torch.from_numpy(parts), *cells.score.shape[1:])  # (n, h, w)
        features = select_defect_cells(cells, covered, 0.0).mean(0).numpy()
        rows, columns = boxes[i]
        regions.append(Region(record, (columns.start, rows.start, columns.stop, rows.stop), float(peaks[i]), features))
    return regions


def crop(region: Region, data: AnomalyDataModule) -> np.ndarray:
    """Cut a region with its surroundings out of its image. -> (h, w, 3) uint8."""
    image, frame = data.source.read(region.record), data.frame
    left, top, right, bottom = region.box
    if data.tiling is None:
        height, width = frame.fit(*image.size)
        x, y = (0, 0) if frame.keep_shape else ((width - frame.size[1]) // 2, (height - frame.size[0]) // 2)
        box = left + x, top + y, right + x, bottom + y
        left, top, right, bottom = scale_box(box, (height, width), image.size)
    extra = int(MARGIN * max(right - left, bottom - top)) + 8
    left, top = max(left - extra, 0), max(top - extra, 0)
    right, bottom = min(right + extra, image.width), min(bottom + extra, image.height)
    return np.asarray(image.convert("RGB").crop((left, top, right, bottom)))


class Grouping(NamedTuple):
    """Groups of n regions."""

    group: np.ndarray  # (n,) 0...g - 1, the largest group first; OTHERS for regions in no group
    silhouette: float | None  # mean silhouette of the regions in groups; None with fewer than two groups


def group_features(
    features: Sequence[np.ndarray], method: Method = "kmeans", groups: int | None = None, least: int = 5
) -> Grouping:
    """Cluster regions by the directions of their residual features (D,), reduced to principal components.

    The length of the feature vector measures how anomalous a region is, its direction in which way.

    Args:
        features: features of each region.
        method: `kmeans`, or `hdbscan` (Campello 2013), which leaves outliers ungrouped.
        groups: number of groups for `kmeans`; None for the number from 2 to 10 with the best mean silhouette
            (Rousseeuw 1987).
        least: smallest number of regions in a group for `hdbscan`.

    Raises:
        UserError: scikit-learn is missing, or there are too few regions.
    """
    try:
        from sklearn.cluster import HDBSCAN, KMeans
        from sklearn.decomposition import PCA
        from sklearn.metrics import silhouette_score
    except ImportError as error:
        raise UserError("grouping needs scikit-learn: pip install 'adlight[group]'") from error
    count = len(features)
    if count < 3 or (groups is not None and groups > count):
        raise UserError(f"{count} regions are too few for {groups or 'several'} groups: give more anomalous images")
    x = np.stack(features)  # (n, D)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    x = PCA(min(COMPONENTS, *x.shape), random_state=0).fit_transform(x)

    def k_means(k: int) -> Any:
        return KMeans(k, n_init=10, random_state=0).fit_predict(x)

    if method == "hdbscan":
        labels = HDBSCAN(min_cluster_size=min(least, count), copy=True).fit_predict(x)
    elif groups is not None:
        labels = k_means(groups)
    else:
        candidates = [k_means(k) for k in range(2, min(MOST, count - 1) + 1)]
        labels = max(candidates, key=lambda labels: silhouette_score(x, labels) if len(set(labels)) > 1 else -1.0)
    group, inside = _number_by_size(labels), labels != OTHERS
    is_defined = 1 < len(set(group[inside])) < inside.sum()
    return Grouping(group, float(silhouette_score(x[inside], group[inside])) if is_defined else None)


def measure_agreement(group: np.ndarray, defect: Sequence[str]) -> dict[str, float]:
    """Compare groups with true types by the adjusted Rand index (Hubert & Arabie 1985) and purity.

    Purity is the share of regions that have the most frequent type of their group. Ungrouped regions count as another
    group.
    """
    from sklearn.metrics import adjusted_rand_score

    names = np.asarray(defect)
    most = [np.unique(names[group == label], return_counts=True)[1].max() for label in np.unique(group)]
    return {"adjusted_rand": float(adjusted_rand_score(names, group)), "purity": float(sum(most) / len(names))}


def _number_by_size(group: np.ndarray) -> np.ndarray:
    labels, counts = np.unique(group[group != OTHERS], return_counts=True)
    order = {old: new for new, old in enumerate(labels[np.argsort(-counts, kind="stable")])}
    return np.array([order.get(label, OTHERS) for label in group])
