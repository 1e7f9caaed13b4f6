"""Held-out normal images and their pseudo-anomalous copies for validation, with a defect or changed as a whole.

Changes of the whole image are for data sets whose anomalies are other classes, not defects. One or two normal images
become an image that no longer shows the object: parts are missing or in the wrong order, two images are combined, the
image is bent, or its colours are unusual. Rotations by quarter turns leave no traces such as seams, but a 0 or a screw
stays normal. Like `pseudo_anomalies.py`, this uses only held-out normal images, and ranks runs without predicting test
results.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Generator, Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from adlight.data.frames import size_of
from adlight.data.pseudo_anomalies import paste_defect, paste_within
from adlight.data.regions import fill_harmonically, randint, uniform
from adlight.data.splits import Split
from adlight.rng import derive_seed
from adlight.types import Batch

MIN_CHANGE = 8.0  # smallest mean change of a whole image, in grey levels of 255
ATTEMPTS = 20


class Images(Protocol):
    """A data set that yields batches of uint8 images, without augmentation."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> Batch: ...


class PseudoAnomalyDataset(Dataset):
    """Each normal image, followed by its anomalous copies.

    Item (1 + copies) i is image i of `dataset`. A copy depends only on the seed, i and its number. It has a defect
    (`pseudo_anomalies.py`) or, if `kind` is `classes`, is changed as a whole (`change_class`), in some cases by means
    of another image of `dataset`, or, if `kind` is `rotations`, is rotated (`rotate`).
    """

    def __init__(self, dataset: Split, seed: int, copies: int = 1, kind: str = "defects") -> None:
        self.dataset, self.seed, self.copies, self.kind = dataset, seed, copies, kind
        self.pasted: dict[int, tuple[Tensor, Tensor]] = {}

    def paste(self, item: int, image: Tensor, content: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Make the pseudo-anomaly of an item. (C, H, W) uint8 -> the changed copy, and its mask (H, W) bool."""
        if item in self.pasted:
            return self.pasted[item]
        i, number = divmod(item, 1 + self.copies)
        rng = Generator().manual_seed(derive_seed("defect", self.seed + number - 1, i))
        if self.kind == "defects":
            result = paste_defect(image, rng) if content is None else paste_within(image, content, rng)
        else:
            changed = rotate(image, rng) if self.kind == "rotations" else self._change_class(i, image, rng)
            result = _limit_change(image, changed, content)
        if self.dataset.cache:
            self.pasted[item] = result
        return result

    def _change_class(self, i: int, image: Tensor, rng: Generator) -> Tensor:
        count = len(self.dataset)
        step = 1 + randint(rng, max(1, count - 1))  # to another image, unless there is only one
        other = self.dataset.__getitems__([(i + step) % count])
        height, width = size_of(other, 0)
        return change_class(image, other["image"][0, :, :height, :width], rng)

    def __len__(self) -> int:
        return (1 + self.copies) * len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Fetch a batch of uint8 images."""
        batch = self.dataset.__getitems__([item // (1 + self.copies) for item in indices])
        batch["index"] = torch.as_tensor(indices)
        batch["label"] = (batch["index"] % (1 + self.copies) > 0).long()
        for row, item in enumerate(indices):
            if batch["label"][row]:
                height, width = size_of(batch, row)
                image, mask = batch["image"][row, :, :height, :width], batch["mask"][row, :height, :width]
                image[:], mask[:] = self.paste(item, image, batch["content"][row] if "content" in batch else None)
        return batch


def rotate(image: Tensor, rng: Generator) -> Tensor:
    """Rotate an image (C, H, W) by 90, 180 or 270 degrees; if it is not square, by 180 degrees."""
    _, height, width = image.shape
    return torch.rot90(image, 1 + randint(rng, 3) if height == width else 2, (1, 2))


def _limit_change(image: Tensor, changed: Tensor, content: Tensor | None) -> tuple[Tensor, Tensor]:
    """Change only the region of interest, invert it if nothing changed there, and return the changed pixels (H, W)."""
    inside = torch.ones_like(image[0], dtype=torch.bool) if content is None else content
    changed = changed.where(inside, image)
    changed = (255 - image).where(inside, image) if torch.equal(changed, image) else changed
    return changed, (changed != image).any(0)


def change_class(image: Tensor, other: Tensor, rng: Generator) -> Tensor:
    """Change an image (C, H, W) uint8, with sides of at least 4, so that it is anomalous as a whole.

    A result almost equal to the image, or to the `other` normal image (C, h, w) that some kinds use, is redrawn; after
    `ATTEMPTS` failures, the image is inverted.
    """
    x = image.float()
    y = functional.interpolate(other.float()[None], x.shape[1:], mode="bilinear", antialias=True)[0]
    for _ in range(ATTEMPTS):
        changed = KINDS[randint(rng, len(KINDS))](x, y, rng).round().clamp(0, 255)
        if min(float((changed - normal).abs().mean()) for normal in (x, y)) >= MIN_CHANGE:
            return changed.to(torch.uint8)
    return 255 - image


def shuffle(image: Tensor, other: Tensor, rng: Generator) -> Tensor:
    """Rearrange 2 x 2 to 4 x 4 parts."""
    grid = 2 + randint(rng, 3)
    height, width = (side // grid for side in image.shape[1:])
    order, changed = torch.randperm(grid * grid, generator=rng).tolist(), image.clone()
    for target, origin in enumerate(order):
        (row, column), (top, left) = divmod(target, grid), divmod(origin, grid)
        part = image[:, top * height : (top + 1) * height, left * width : (left + 1) * width]
        changed[:, row * height : (row + 1) * height, column * width : (column + 1) * width] = part
    return changed


def splice(image: Tensor, other: Tensor, rng: Generator) -> Tensor:
    """Join one half to the same half of another image, such as two left halves."""
    axis, first = 1 + randint(rng, 2), randint(rng, 2)
    half = image.shape[axis] // 2
    start = 0 if first else image.shape[axis] - half
    moved = other.narrow(axis, start, half)
    rest = image.narrow(axis, 0 if first else half, image.shape[axis] - half)
    return torch.cat([rest, moved] if first else [moved, rest], axis)


def remove(image: Tensor, other: Tensor, rng: Generator) -> Tensor:
    """Cover a box, 0.3 to 0.7 of the sides long, with its surroundings."""
    height, width = (max(3, round(side * uniform(rng, 0.3, 0.7))) for side in image.shape[1:])
    top, left = randint(rng, image.shape[1] - height + 1), randint(rng, image.shape[2] - width + 1)
    box, changed = (slice(None), slice(top, top + height), slice(left, left + width)), image.clone()
    changed[box] = fill_harmonically(image[box])
    return changed


def overlay(image: Tensor, other: Tensor, rng: Generator) -> Tensor:
    """Overlay the bright or dark parts of another image, or all of it, at a random offset."""
    y = _sample(other, torch.rand(2, generator=rng) * 1.2 - 0.6)
    return (torch.maximum(image, y), torch.minimum(image, y), (image + y) / 2)[randint(rng, 3)]


def warp(image: Tensor, other: Tensor, rng: Generator) -> Tensor:
    """Bend the image smoothly, by about 15 % of the side."""
    coarse = torch.randn(1, 2, 4, 4, generator=rng) * 0.3
    field = functional.interpolate(coarse, image.shape[1:], mode="bicubic", align_corners=True)[0]
    return _sample(image, field.permute(1, 2, 0))


def recolor(image: Tensor, other: Tensor, rng: Generator) -> Tensor:
    """Invert or flatten some or all channels."""
    mean = image.mean((1, 2), keepdim=True)
    changed = 255 - image if randint(rng, 2) else mean + uniform(rng, 0.1, 0.4) * (image - mean)
    chosen = torch.rand(len(image), 1, 1, generator=rng) < 0.5
    return changed.where(chosen | ~chosen.any(), image)


def _sample(image: Tensor, offset: Tensor) -> Tensor:
    """Sample an image at an offset to the right and down, in half sides. (C, H, W), (2,) or (H, W, 2) -> (C, H, W)."""
    rows, columns = (torch.linspace(-1, 1, side) for side in image.shape[1:])
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1) + offset  # (H, W, 2)
    return functional.grid_sample(image[None], grid[None], padding_mode="border", align_corners=True)[0]


Kind = Callable[[Tensor, Tensor, Generator], Tensor]  # two images (C, H, W) float in [0, 255] -> an image
KINDS: tuple[Kind, ...] = (shuffle, splice, remove, overlay, warp, recolor)
