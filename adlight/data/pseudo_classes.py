"""Pseudo-anomalies that are whole images: what validation needs where anomalies are of another class, not defects.

Every kind makes an image that shows no such object any more out of one or two normal ones: parts in the wrong order or
missing, two images in one, bent, or in colours that it never has. Turned, moved or stretched images are not among
them: an 8 stays an 8. They use nothing but held-out normal images, as `pseudo_anomalies.py` does, and rank detectors;
they do not predict a result on the test set.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional

from adlight.data.regions import fill_harmonically, randint, uniform

MIN_CHANGE = 8.0  # grey levels, of 255: the smallest mean change
ATTEMPTS = 20


def change_class(image: Tensor, other: Tensor, rng: Generator) -> Tensor:
    """Make an image that is normal nowhere in particular, and not as a whole.

    What came out (nearly) the same, as a turned circle does, is drawn again; after `ATTEMPTS` failures colours are
    inverted.

    Args:
        image: (C, H, W) uint8 on the CPU, H and W at least 4.
        other: another normal image of any height and width, (C, h, w) uint8.
        rng: the only source of randomness.

    Returns:
        The changed copy, (C, H, W) uint8.
    """
    x = image.float()
    y = functional.interpolate(other.float()[None], x.shape[1:], mode="bilinear", antialias=True)[0]
    for _ in range(ATTEMPTS):
        made = KINDS[randint(rng, len(KINDS))](x, y, rng).round().clamp(0, 255)
        if min(float((made - one).abs().mean()) for one in (x, y)) >= MIN_CHANGE:
            return made.to(torch.uint8)
    return 255 - image


def shuffle(image: Tensor, other: Tensor, rng: Generator) -> Tensor:
    """Put the 2 x 2 to 4 x 4 parts into another order. (C, H, W), (C, H, W) float -> (C, H, W)."""
    grid = 2 + randint(rng, 3)
    height, width = (side // grid for side in image.shape[1:])
    order, made = torch.randperm(grid * grid, generator=rng).tolist(), image.clone()
    for to, taken in enumerate(order):
        (row, column), (top, left) = divmod(to, grid), divmod(taken, grid)
        part = image[:, top * height : (top + 1) * height, left * width : (left + 1) * width]
        made[:, row * height : (row + 1) * height, column * width : (column + 1) * width] = part
    return made


def splice(image: Tensor, other: Tensor, rng: Generator) -> Tensor:
    """Join a half to the same half of another image: two beginnings or two ends. (C, H, W), (C, H, W) -> (C, H, W)."""
    axis, first = 1 + randint(rng, 2), randint(rng, 2)
    half = image.shape[axis] // 2
    start = 0 if first else image.shape[axis] - half
    moved = other.narrow(axis, start, half)
    rest = image.narrow(axis, 0 if first else half, image.shape[axis] - half)
    return torch.cat([rest, moved] if first else [moved, rest], axis)


def remove(image: Tensor, other: Tensor, rng: Generator) -> Tensor:
    """Cover a box of a third to two thirds of the sides by its surroundings. (C, H, W), (C, H, W) -> (C, H, W)."""
    height, width = (max(3, round(side * uniform(rng, 0.3, 0.7))) for side in image.shape[1:])
    top, left = randint(rng, image.shape[1] - height + 1), randint(rng, image.shape[2] - width + 1)
    box, made = (slice(None), slice(top, top + height), slice(left, left + width)), image.clone()
    made[box] = fill_harmonically(image[box])
    return made


def overlay(image: Tensor, other: Tensor, rng: Generator) -> Tensor:
    """Let another image show through, its lightest or darkest parts or all of it. (C, H, W), (C, H, W) -> the same."""
    y = _sample(other, torch.rand(2, generator=rng) * 1.2 - 0.6)
    return (torch.maximum(image, y), torch.minimum(image, y), (image + y) / 2)[randint(rng, 3)]


def warp(image: Tensor, other: Tensor, rng: Generator) -> Tensor:
    """Bend: parts move by about 15 % of the side, neighbours together. (C, H, W), (C, H, W) -> (C, H, W)."""
    coarse = torch.randn(1, 2, 4, 4, generator=rng) * 0.3
    field = functional.interpolate(coarse, image.shape[1:], mode="bicubic", align_corners=True)[0]
    return _sample(image, field.permute(1, 2, 0))


def recolor(image: Tensor, other: Tensor, rng: Generator) -> Tensor:
    """Invert, or reduce the contrast, all channels or some. (C, H, W), (C, H, W) -> (C, H, W)."""
    mean = image.mean((1, 2), keepdim=True)
    made = 255 - image if randint(rng, 2) else mean + uniform(rng, 0.1, 0.4) * (image - mean)
    chosen = torch.rand(len(image), 1, 1, generator=rng) < 0.5
    return made.where(chosen | ~chosen.any(), image)


def _sample(image: Tensor, offset: Tensor) -> Tensor:
    """Read an image elsewhere, by (2,) or (H, W, 2) half sides to the right and down. (C, H, W) -> (C, H, W)."""
    rows, columns = (torch.linspace(-1, 1, side) for side in image.shape[1:])
    places = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1) + offset  # (H, W, 2)
    return functional.grid_sample(image[None], places[None], padding_mode="border", align_corners=True)[0]


KINDS: tuple[Callable[[Tensor, Tensor, Generator], Tensor], ...] = (
    *(shuffle, splice, remove),
    *(overlay, warp, recolor),
)
