"""Defects pasted on normal images, so that validation has something to find without a labelled anomaly.

Three kinds: a patch from elsewhere in the image (CutPaste; Li et al. 2021), a thin turned strip of it (their
scar), and a region of smooth noise that other content shines through (after DRAEM; Zavrtanik et al.
2021). Size and strength span from subtle to obvious, so that `val/auroc` does not saturate.

Real defects differ from these: the scores tell runs apart, they do not foretell a result on the test set.
"""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

LEAST_CHANGE = 6  # grey levels, of 255, from which a pixel counts as changed
VISIBLE = 8.0  # grey levels: the least mean change of a defect, noise averaged out
SMALLEST, LARGEST = 0.001, 0.4  # fractions of the image that a defect may cover
FEWEST_PIXELS = 6
ATTEMPTS = 10


def paste_defect(image: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Paste one defect of a random kind on a copy of an image.

    What came out invisible (background on background), tiny or huge is drawn again; after `ATTEMPTS` failures
    a brighter or darker rectangle is pasted, which is visible on anything.

    Args:
        image: (C, H, W) uint8 on the CPU, H and W at least 28.
        generator: the only source of randomness.

    Returns:
        The changed copy, (C, H, W) uint8, and the mask of exactly the pixels that differ, (H, W) bool.
    """
    assert image.dtype == torch.uint8 and image.ndim == 3, f"{tuple(image.shape)} {image.dtype}"
    for _ in range(ATTEMPTS):
        kind = (cut_paste, scar, blend)[integer(generator, 3)]
        pasted = kind(image.float(), generator).round().clamp(0, 255)
        mask = visible_change(image, pasted)
        if mask is not None:
            return torch.where(mask, pasted.to(torch.uint8), image), mask
    mask = strip(image, generator, uniform(generator, 0.15, 0.3), uniform(generator, 0.15, 0.3))[2]
    shift = integer(generator, 80) + 24
    pasted = torch.where(image < 128, image + shift, image - shift)
    return torch.where(mask, pasted, image), mask


def visible_change(image: Tensor, pasted: Tensor) -> Tensor | None:
    """The mask of the changed pixels, (H, W) bool; None where they are too few, too many or too faint.

    Faint is measured on 3 x 3 means: noise moved onto noise changes every pixel and shows nothing.
    """
    change = pasted - image
    mask = change.abs().amax(dim=0) >= LEAST_CHANGE
    pixels = int(mask.sum())
    if not max(FEWEST_PIXELS, SMALLEST * mask.numel()) <= pixels <= LARGEST * mask.numel():
        return None
    smooth = functional.avg_pool2d(change[None], 3, stride=1, padding=1)[0].abs().amax(dim=0)
    return mask if float(smooth[mask].mean()) >= VISIBLE else None


def cut_paste(image: Tensor, generator: Generator) -> Tensor:
    """Copy a rectangle of 0.5 to 12 % of the image, half the time jittered: (C, H, W) float."""
    area, stretch = log_uniform(generator, 0.005, 0.12), log_uniform(generator, 0.4, 2.5)
    rows, columns, inside = strip(image, generator, math.sqrt(area * stretch), math.sqrt(area / stretch))
    return torch.where(inside, jittered(image[:, rows, columns], generator), image)


def scar(image: Tensor, generator: Generator) -> Tensor:
    """Copy a thin strip, 0.8 to 5 % of the image's side wide, 10 to 40 % long, jittered: (C, H, W) float."""
    width, length = log_uniform(generator, 0.008, 0.05), log_uniform(generator, 0.1, 0.4)
    rows, columns, inside = strip(image, generator, length, width)
    return torch.where(inside, jittered(image[:, rows, columns], generator, always=True), image)


def blend(image: Tensor, generator: Generator) -> Tensor:
    """Let other content show through where smooth noise is high, opacity 0.2 to 0.8: (C, H, W) float."""
    _, height, width = image.shape
    row, column = uniform(generator, 0.1, 0.9), uniform(generator, 0.1, 0.9)
    down = (torch.arange(height) / height - row)[:, None]
    right = torch.arange(width) / width - column
    reach = log_uniform(generator, 0.05, 0.25)
    waves = 4 + integer(generator, 9)
    coarse = torch.randn(1, 1, waves, waves, generator=generator)
    noise = functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)[0, 0]
    field = 0.45 * noise + 1 - (down**2 + right**2) / reach**2  # noise alone would cover the whole image
    sharpness = log_uniform(generator, 1.5, 20)
    alpha = (field * sharpness).clamp(0, 1) * uniform(generator, 0.2, 0.8)
    moved = (integer(generator, height), integer(generator, width))
    other = jittered(image.flip(1 + integer(generator, 2)).roll(moved, (1, 2)), generator, always=True)
    return image + alpha * (other - image)


def strip(image: Tensor, generator: Generator, length: float, width: float) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a turned rectangle and, for each of its pixels, another one of the image to copy.

    Args:
        image: (C, H, W).
        generator: draws the place, the angle, and the place and turn of what is copied.
        length: in parts of the image's side.
        width: in parts of the image's side; at least one pixel is taken.

    Returns:
        Rows and columns of the copied pixels, (H, W) int64, and the rectangle, (H, W) bool.
    """
    _, height, across = image.shape
    side = math.sqrt(height * across)
    angle = uniform(generator, 0, math.pi)
    down = torch.arange(height)[:, None] - uniform(generator, 0.1, 0.9) * height
    right = torch.arange(across) - uniform(generator, 0.1, 0.9) * across
    along = right * math.cos(angle) + down * math.sin(angle)
    beside = down * math.cos(angle) - right * math.sin(angle)
    inside = (along.abs() <= max(length * side, 3) / 2) & (beside.abs() <= max(width * side, 1.5) / 2)
    turn = angle * integer(generator, 2)  # upright as it was, or turned with the rectangle
    rows = uniform(generator, 0, 1) * height + along * math.sin(turn) + beside * math.cos(turn)
    columns = uniform(generator, 0, 1) * across + along * math.cos(turn) - beside * math.sin(turn)
    return mirrored(rows, height), mirrored(columns, across), inside


def mirrored(index: Tensor, size: int) -> Tensor:
    """Whole indices in [0, size), reflected at the borders: int64."""
    index = index.round().long() % (2 * size)
    return torch.minimum(index, 2 * size - 1 - index)


def jittered(content: Tensor, generator: Generator, always: bool = False) -> Tensor:
    """Change brightness by 8 to 60 grey levels, contrast and tint a little; half the time unless `always`."""
    strength = log_uniform(generator, 8, 60)
    sign = 1 - 2 * integer(generator, 2)
    tint = 1 + 0.25 * torch.randn(len(content), 1, 1, generator=generator)
    contrast = uniform(generator, 0.8, 1.2)
    if not always and integer(generator, 2):
        return content
    return (content - 128) * contrast + 128 + sign * strength * tint


def uniform(generator: Generator, low: float, high: float) -> float:
    """Draw a number between two."""
    return low + (high - low) * torch.rand((), generator=generator).item()


def log_uniform(generator: Generator, low: float, high: float) -> float:
    """Draw a number between two, all orders of magnitude being equally likely."""
    return math.exp(uniform(generator, math.log(low), math.log(high)))


def integer(generator: Generator, count: int) -> int:
    """Draw a number from 0 to `count` - 1."""
    return int(torch.randint(count, (), generator=generator))
