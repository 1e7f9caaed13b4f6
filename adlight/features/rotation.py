"""Rotated copies of training images, for objects that may lie at any angle.

No training set shows such objects at every angle, and a copy rotated by 90, 180 or 270 degrees, without interpolation,
is another normal image. For other objects, a rotated image is anomalous. The training images decide, cluster by
cluster: rotations are normal where a rotated image is about as near to the other images as the image itself.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adlight.data.pseudo_dataset import Images
from adlight.features.cache import FeatureCache
from adlight.features.cells import Copies, TrainingCells, image_means, in_image
from adlight.types import Batch

SAMPLE = 16  # number of images per cluster that are rotated to decide
NEIGHBOURS = 8  # number of nearest training images whose mean distance measures how normal an image is
MAX_RATIO = 1.35  # largest ratio of distances after and before rotation, median of a cluster (experiments/features)


class RotatedImages:
    """Some images of a data set, rotated by quarter turns.

    Args:
        images: the data set.
        rows: indices of the images, (M,).
        turns: quarter turns, counterclockwise; an odd number only in square frames without padding.
    """

    def __init__(self, images: Images, rows: Tensor, turns: int) -> None:
        self.images, self.rows, self.turns = images, rows.tolist(), turns

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return the images' pixels, and their sizes if they are padded."""
        batch = self.images.__getitems__([self.rows[i] for i in indices])
        size = batch.get("size")
        rotated: Any = {"image": rotate(batch["image"], self.turns, size)}
        return rotated if size is None else rotated | {"size": size}


def rotate(image: Tensor, turns: int, size: Tensor | None = None) -> Tensor:
    """Rotate images (B, C, H, W) by quarter turns; padded images only within their heights and widths `size` (B, 2)."""
    if size is None:
        return image.rot90(turns, (2, 3)).contiguous()
    rotated = torch.zeros_like(image)
    for source, target, (height, width) in zip(image, rotated, size.tolist(), strict=True):
        target[:, :height, :width] = source[:, :height, :width].rot90(turns, (1, 2))
    return rotated


def make_copies(cells: TrainingCells, centers: Tensor, images: Images, cache: FeatureCache) -> Copies | None:
    """Rotate the training images of the clusters in which rotated images are normal.

    A quarter turn is tried first if frames are square and not padded, then half a turn.

    Args:
        cells: cells of the training images.
        centers: (K, C), centers of the clusters of mean cells.
        images: the training images, without augmentation.
        cache: computes features.

    Returns:
        The copies; None if rotations are normal in no cluster, or a region of interest fixes the orientation.
    """
    first = images.__getitems__([0])
    if "content" in first or len(cells) < 2:
        return None
    cluster = torch.cat([torch.cdist(image_means(part), centers).argmin(1) for part in cells.batches()]).cpu()  # (N,)
    sample = torch.cat([_spread((cluster == k).nonzero()[:, 0]) for k in cluster.unique().tolist()])
    before = _nearness(cells[sample], cells, sample)

    def is_normal(turns: int) -> Tensor:  # (N,) bool
        features = cache(RotatedImages(images, sample, turns), cells.mean.device)
        ratio = _nearness(TrainingCells(features, cells.mean, cells.std)[:], cells, sample) / before
        normal = [k for k in cluster.unique().tolist() if ratio[cluster[sample] == k].median() <= MAX_RATIO]
        return torch.isin(cluster, torch.tensor(normal, dtype=cluster.dtype))

    is_square = "size" not in first and first["image"].shape[2] == first["image"].shape[3]
    quarter = is_normal(1) if is_square else torch.zeros(len(cells), dtype=torch.bool)
    half = quarter if quarter.all() else quarter | is_normal(2)
    if not half.any():
        return None
    features, source = [], []
    for turns, is_rotated in ((1, quarter), (2, half), (3, quarter)):
        if is_rotated.any():
            source.append(is_rotated.nonzero()[:, 0])
            features.append(cache(RotatedImages(images, source[-1], turns), cells.mean.device))
    return Copies(torch.cat(features), torch.cat(source))


def _spread(rows: Tensor) -> Tensor:
    """Select at most `SAMPLE` evenly spaced rows."""
    return rows[torch.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).round().long()]


def _nearness(query: Tensor, cells: TrainingCells, own: Tensor) -> Tensor:
    """Average the squared distances to the nearest training images other than `own`. (B, h, w, C), (B,) -> (B,)."""
    inside = in_image(query)[..., None].expand_as(query).flatten(1)  # (B, h w C), distances ignore padding
    x = query.flatten(1).where(inside, 0)
    weight, distances = inside.float(), []
    for part in cells.batches():
        y = part.flatten(1).nan_to_num(0)
        distances.append(weight @ y.square().T - 2 * x @ y.T)
    distance = torch.cat(distances, 1) + x.square().sum(1, keepdim=True)  # (B, N)
    distance[torch.arange(len(own)), own] = torch.inf
    return distance.topk(min(NEIGHBOURS, len(cells) - 1), largest=False).values.mean(1).clamp(min=1e-12).cpu()
