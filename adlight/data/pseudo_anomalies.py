"""Pseudo-anomalies: synthetic defects on normal images, so that validation needs no real anomalies.

In a region, other content is blended over the image: x + alpha (content - x). Structural defects displace, duplicate or
erase a part. Texture defects clone a patch from elsewhere without a seam (Poisson blending; Perez 2003, and Schlueter
2022 for defects), paste it with hard edges (CutPaste; Li 2021), or stain a region. Marks are scratches and spots.
All sizes are log-uniform, so that small and weak defects are as likely as large and strong defects, and most defects
lie where the image has structure: `val/auroc` then leaves room above good detectors.

Real defects differ: the scores rank runs, but do not predict results on the test set.
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional

from adlight.data.regions import (
    blend,
    blend_seamlessly,
    draw_blob,
    draw_place,
    draw_step,
    draw_tint,
    log_uniform,
    measure_offsets,
    randint,
    take,
    uniform,
)

MIN_CHANGE = 6  # smallest change of a changed pixel, in grey levels of 255
MIN_VISIBLE_CHANGE = 8.0  # smallest mean change of a defect after smoothing, in grey levels
MIN_AREA, MAX_AREA = 0.0005, 0.2  # fractions of the image that a defect may cover
MIN_PIXELS = 6
ATTEMPTS = 20


def paste_defect(image: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
    """Draw one defect of a random kind on a copy of an image (C, H, W) uint8, with sides of at least 28.

    An invisible, tiny or huge defect is redrawn; after `ATTEMPTS` failures, a rectangle is made brighter or darker.

    Returns:
        The changed copy, and the mask (H, W) bool of exactly the changed pixels.
    """
    assert image.dtype == torch.uint8 and image.ndim == 3, f"{tuple(image.shape)} {image.dtype}"
    for _ in range(ATTEMPTS):
        pasted = KINDS[randint(rng, len(KINDS))](image.float(), rng).round().clamp(0, 255)
        mask = visible_change(image, pasted)
        if mask is not None:
            return torch.where(mask, pasted.to(torch.uint8), image), mask
    _, height, width = image.shape
    mask = torch.zeros(height, width, dtype=torch.bool)
    top, left = randint(rng, height - height // 4), randint(rng, width - width // 4)
    mask[top : top + height // 4, left : left + width // 4] = True
    shift = randint(rng, 80) + 24
    return torch.where(mask, torch.where(image < 128, image + shift, image - shift), image), mask


def paste_within(image: Tensor, content: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
    """Draw a defect as `paste_defect` does, restricted to the region of interest `content` (H, W).

    After `ATTEMPTS` failures, the whole region is inverted.
    """
    rows, columns = (_span(content.any(axis).nonzero()[:, 0], content.shape[1 - axis]) for axis in (1, 0))
    result, mask, inside = image.clone(), torch.zeros_like(content), content[rows, columns]
    part = image[:, rows, columns]
    for _ in range(ATTEMPTS):
        pasted, found = paste_defect(part, rng)
        if (found & inside).sum() >= min(MIN_PIXELS, int(inside.sum())):
            break
    else:
        pasted, found = 255 - part, inside
    mask[rows, columns] = found & inside
    result[:, rows, columns] = torch.where(found & inside, pasted, part)
    return result, mask


def _span(positions: Tensor, size: int) -> slice:
    """Return the range of ascending positions, extended to at least 32 pixels if the side is that long."""
    first, last = int(positions[0]), int(positions[-1]) + 1
    first = max(0, min(first, last - 32))
    return slice(first, max(last, min(size, first + 32)))


def visible_change(image: Tensor, pasted: Tensor) -> Tensor | None:
    """Find the changed pixels, (H, W) bool; None if they are too few, too many or too weak.

    The strength is measured on 3 x 3 means, because noise that replaces noise changes every pixel invisibly.
    """
    change = pasted - image
    mask = change.abs().amax(dim=0) >= MIN_CHANGE
    pixels = int(mask.sum())
    if not max(MIN_PIXELS, MIN_AREA * mask.numel()) <= pixels <= MAX_AREA * mask.numel():
        return None
    smooth = functional.avg_pool2d(change[None], 3, stride=1, padding=1)[0].abs().amax(dim=0)
    return mask if float(smooth[mask].mean()) >= MIN_VISIBLE_CHANGE else None


def displace(image: Tensor, rng: Generator) -> Tensor:
    """Move a part by 1.5 to 6 % of the side and rotate it by up to 20 degrees."""
    region, side = draw_blob(image, rng), math.sqrt(image[0].numel())
    distance, turn = max(1.5, side * log_uniform(rng, 0.015, 0.06)), uniform(rng, -0.35, 0.35)
    return blend(image, take(image, region, draw_step(rng, distance), turn), region.alpha)


def duplicate(image: Tensor, rng: Generator) -> Tensor:
    """Repeat a part at a distance of 1 to 2.5 of its radii."""
    region = draw_blob(image, rng)
    step = draw_step(rng, region.radius * uniform(rng, 1, 2.5))
    return blend(image, take(image, region, step), region.alpha)


def erase(image: Tensor, rng: Generator) -> Tensor:
    """Cover a part with its surroundings, without a seam."""
    region = draw_blob(image, rng)
    step = draw_step(rng, region.radius * uniform(rng, 2, 4))
    return blend(image, blend_seamlessly(image, take(image, region, step), region.alpha), region.alpha)


def clone(image: Tensor, rng: Generator) -> Tensor:
    """Blend in a patch from elsewhere, rotated or not, without a seam."""
    region = draw_blob(image, rng)
    turn = uniform(rng, -math.pi, math.pi) * randint(rng, 2)
    source = take(image, region, draw_step(rng, math.sqrt(image[0].numel()) * uniform(rng, 0.1, 0.5)), turn)
    return blend(image, blend_seamlessly(image, source, region.alpha), region.alpha * uniform(rng, 0.4, 1))


def cut_paste(image: Tensor, rng: Generator) -> Tensor:
    """Paste a patch from elsewhere with hard edges and a slightly different brightness."""
    region = draw_blob(image, rng)
    source = take(image, region, draw_step(rng, math.sqrt(image[0].numel()) * uniform(rng, 0.1, 0.5)))
    return blend(image, source + draw_tint(image, rng, 4, 20), (region.alpha > 0.5).float())


def stain(image: Tensor, rng: Generator) -> Tensor:
    """Change the brightness, tint and contrast of a region."""
    region, contrast = draw_blob(image, rng), uniform(rng, 0.7, 1.1)
    mean = (image * region.alpha).sum((1, 2), keepdim=True) / region.alpha.sum().clamp(min=1)
    return blend(image, (image - mean) * contrast + mean + draw_tint(image, rng, 10, 50), region.alpha)


def scratch(image: Tensor, rng: Generator) -> Tensor:
    """Draw a bent line, 0.4 to 1.5 % of the side wide and 5 to 30 % long."""
    side, angle, bend = math.sqrt(image[0].numel()), uniform(rng, 0, math.pi), uniform(rng, -0.6, 0.6)
    length, width = max(5.0, side * log_uniform(rng, 0.05, 0.3)), max(1.0, side * log_uniform(rng, 0.004, 0.015))
    down, right = measure_offsets(image, *draw_place(image, rng))
    along = right * math.cos(angle) + down * math.sin(angle)
    beside = down * math.cos(angle) - right * math.sin(angle) + bend * along.square() / length
    fade = ((length / 2 - along.abs()) / width + 0.5).clamp(0, 1)
    return blend(image, image + draw_tint(image, rng, 12, 60), fade * (width / 2 - beside.abs() + 0.5).clamp(0, 1))


def spot(image: Tensor, rng: Generator) -> Tensor:
    """Draw 1 to 4 nearby specks with radii of 0.6 to 2 % of the side."""
    side, (row, column) = math.sqrt(image[0].numel()), draw_place(image, rng)
    alpha, tint = torch.zeros_like(image[0]), draw_tint(image, rng, 12, 60)
    for _ in range(1 + randint(rng, 4)):
        radius = max(1.2, side * log_uniform(rng, 0.006, 0.02))
        down, right = measure_offsets(image, row, column)
        alpha = torch.maximum(alpha, (radius - (down.square() + right.square()).sqrt() + 0.5).clamp(0, 1))
        row, column = row + uniform(rng, -4, 4) * radius, column + uniform(rng, -4, 4) * radius
    return blend(image, image + tint, alpha)


Kind = Callable[[Tensor, Generator], Tensor]  # (C, H, W) float in [0, 255] -> the same
KINDS: tuple[Kind, ...] = (displace, duplicate, erase, clone, cut_paste, stain, scratch, spot)
