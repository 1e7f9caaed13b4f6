"""Rotated copies of training images, for objects that may lie at any angle.

No training set shows such objects at every angle, and a rotated copy is another normal image. For other objects, a
rotated image is anomalous. The training images decide, cluster by cluster: rotations are normal where an image rotated
by a quarter turn (or half a turn), which needs no interpolation, is about as near to the other images as the image
itself.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from adlight.data.pseudo_dataset import Images
from adlight.features.cache import FeatureCache
from adlight.features.cells import Copies, TrainingCells, image_means, in_image
from adlight.types import Batch

SAMPLE = 16  # number of images per cluster that are rotated to decide
NEIGHBOURS = 8  # number of nearest training images whose mean distance measures how normal an image is
MAX_RATIO = 1.35  # largest ratio of distances after and before rotation, median of a cluster (experiments/features)
MAX_RATIO_BETWEEN = 2.0  # largest ratio at 45 degrees, median of all such clusters; interpolation adds to it
ANGLES = (32, 16, 8)  # numbers of angles besides 4; the largest whose copies fit into MAX_BYTES is chosen
MAX_BYTES = 2_000 * 20 * 20 * 232 * 2  # 2,000 copies of 20 x 20 cells of 232 values of 16 bits


class RotatedImages:
    """The images `rows` (M,) of a data set, rotated counterclockwise by an angle in degrees.

    Only in square frames without padding can it be other than 180.
    """

    def __init__(self, images: Images, rows: Tensor, degrees: float) -> None:
        self.images, self.rows, self.degrees = images, rows.tolist(), degrees

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return the images' pixels, and their sizes if they are padded."""
        batch = self.images.__getitems__([self.rows[i] for i in indices])
        size = batch.get("size")
        rotated: Any = {"image": rotate(batch["image"], self.degrees, size)}
        return rotated if size is None else rotated | {"size": size}


def rotate(image: Tensor, degrees: float, size: Tensor | None = None) -> Tensor:
    """Rotate images counterclockwise, padded ones only within their heights and widths `size` (B, 2).

    Between quarter turns, pixels are interpolated (bicubic), and the image's mirror image fills the corners.

    Args:
        image: (B, C, H, W), uint8 or in [0, 1].
        degrees: angle; a multiple of 90 if images are padded.
        size: heights and widths of padded images; None if nothing is padded.
    """
    turns, rest = divmod(degrees, 90)
    if rest:
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        grid = affine_grid(torch.tensor([[[cos, -sin, 0], [sin, cos, 0]]]), [1, 1, *image.shape[2:]], False)
        whole = grid.expand(len(image), -1, -1, -1).to(image.device)  # (B, H, W, 2)
        rotated = grid_sample(image.float(), whole, "bicubic", "reflection", align_corners=False)
        return rotated.round().clamp(0, 255).byte() if image.dtype == torch.uint8 else rotated.clamp(0, 1)
    if size is None:
        return image.rot90(int(turns), (2, 3)).contiguous()
    rotated = torch.zeros_like(image)
    for source, target, (height, width) in zip(image, rotated, size.tolist(), strict=True):
        target[:, :height, :width] = source[:, :height, :width].rot90(int(turns), (1, 2))
    return rotated


def make_copies(
    cells: TrainingCells, centers: Tensor, images: Images, cache: FeatureCache, most: int = ANGLES[0]
) -> Copies | None:
    """Rotate the training images of the clusters in which rotated images are normal.

    A quarter turn is tried first if frames are square and not padded, then half a turn. Where quarter turns are normal,
    few images are rotated by more angles, unless they differ much from the others between quarter turns. The clusters
    of mean cells have the centers (K, C); `images` are not augmented. There are at most `most` angles, or 4.

    Returns:
        The copies; None if rotations are normal in no cluster, or a region of interest fixes the orientation.
    """
    first = images.__getitems__([0])
    if "content" in first or len(cells) < 2:
        return None
    cluster = torch.cat([torch.cdist(image_means(part), centers).argmin(1) for part in cells.batches()]).cpu()  # (N,)
    sample = torch.cat([_spread((cluster == k).nonzero()[:, 0]) for k in cluster.unique().tolist()])
    before = _nearness(cells[sample], cells, sample)

    def compare(degrees: int) -> Tensor:  # (S,), ratios of the distances after and before rotation
        features = cache(RotatedImages(images, sample, degrees), cells.mean.device)
        return _nearness(TrainingCells(features, cells.mean, cells.std)[:], cells, sample) / before

    def is_normal(degrees: int) -> Tensor:  # (N,) bool
        ratio = compare(degrees)
        normal = [k for k in cluster.unique().tolist() if ratio[cluster[sample] == k].median() <= MAX_RATIO]
        return torch.isin(cluster, torch.tensor(normal, dtype=cluster.dtype))

    is_square = "size" not in first and first["image"].shape[2] == first["image"].shape[3]
    quarter = is_normal(90) if is_square else torch.zeros(len(cells), dtype=torch.bool)
    half = quarter if quarter.all() else quarter | is_normal(180)
    if not half.any():
        return None
    between = quarter.any() and compare(45)[quarter[sample]].median() <= MAX_RATIO_BETWEEN
    features, source = [], []
    size = int(quarter.sum()) * cells.features[0].numel() * cells.features.element_size()
    for degrees in choose_angles(size, most) if between else (90, 180, 270):
        is_rotated = half if degrees == 180 else quarter
        if is_rotated.any():
            source.append(is_rotated.nonzero()[:, 0])
            features.append(cache(RotatedImages(images, source[-1], degrees), cells.mean.device))
    return Copies(torch.cat(features), torch.cat(source))


def choose_angles(size: int, most: int = ANGLES[0]) -> list[float]:
    """Choose at most `most` angles, in degrees, for images of `size` bytes: the fewer images, the more angles."""
    number = next((number for number in ANGLES if number <= most and (number - 1) * size <= MAX_BYTES), 4)
    return [360 * i / number for i in range(1, number)]


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
