"""Pseudo-anomalies: defects pasted on normal images, so that validation has both labels without a real anomaly.

Three kinds: a patch from elsewhere in the image (CutPaste; Li et al., CVPR 2021), a thin rotated strip of it (their
scar), and a region of smooth noise that other content shows through (after DRAEM; Zavrtanik et al., ICCV 2021).
Size and strength range from subtle to obvious, so that `val/auroc` does not saturate.

Real defects differ from these: the scores rank runs, they do not predict a result on the test set.
"""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

MIN_CHANGE = 6  # grey levels, of 255, from which a pixel counts as changed
MIN_VISIBLE_CHANGE = 8.0  # grey levels: the smallest mean change of a defect, noise averaged out
MIN_AREA, MAX_AREA = 0.001, 0.4  # fractions of the image that a defect may cover
MIN_PIXELS = 6
ATTEMPTS = 10


def paste_defect(image: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
    """Paste one defect of a random kind on a copy of an image.

    A defect that came out invisible (background on background), tiny or huge is drawn again; after `ATTEMPTS` failures
    a brighter or darker rectangle is pasted, which is visible on anything.

    Args:
        image: (C, H, W) uint8 on the CPU, H and W at least 28.
        rng: the only source of randomness.

    Returns:
        The changed copy, (C, H, W) uint8, and the mask of exactly the pixels that differ, (H, W) bool.
    """
    assert image.dtype == torch.uint8 and image.ndim == 3, f"{tuple(image.shape)} {image.dtype}"
    for _ in range(ATTEMPTS):
        kind = (cut_paste, scar, blend)[_randint(rng, 3)]
        pasted = kind(image.float(), rng).round().clamp(0, 255)
        mask = visible_change(image, pasted)
        if mask is not None:
            return torch.where(mask, pasted.to(torch.uint8), image), mask
    mask = _draw_strip(image, rng, _uniform(rng, 0.15, 0.3), _uniform(rng, 0.15, 0.3))[2]
    shift = _randint(rng, 80) + 24
    pasted = torch.where(image < 128, image + shift, image - shift)
    return torch.where(mask, pasted, image), mask


def visible_change(image: Tensor, pasted: Tensor) -> Tensor | None:
    """Find the changed pixels, (H, W) bool; None where they are too few, too many or too faint.

    Faintness is measured on 3 x 3 means: noise moved onto noise changes every pixel and shows nothing.
    """
    change = pasted - image
    mask = change.abs().amax(dim=0) >= MIN_CHANGE
    pixels = int(mask.sum())
    if not max(MIN_PIXELS, MIN_AREA * mask.numel()) <= pixels <= MAX_AREA * mask.numel():
        return None
    smooth = functional.avg_pool2d(change[None], 3, stride=1, padding=1)[0].abs().amax(dim=0)
    return mask if float(smooth[mask].mean()) >= MIN_VISIBLE_CHANGE else None


def cut_paste(image: Tensor, rng: Generator) -> Tensor:
    """Copy a rectangle of 0.5 to 12 % of the image, half the time jittered. (C, H, W) float -> the same."""
    area, stretch = _log_uniform(rng, 0.005, 0.12), _log_uniform(rng, 0.4, 2.5)
    rows, columns, inside = _draw_strip(image, rng, math.sqrt(area * stretch), math.sqrt(area / stretch))
    return torch.where(inside, _jitter(image[:, rows, columns], rng), image)


def scar(image: Tensor, rng: Generator) -> Tensor:
    """Copy a thin strip, 0.8 to 5 % of the side wide and 10 to 40 % long, jittered. (C, H, W) float -> the same."""
    width, length = _log_uniform(rng, 0.008, 0.05), _log_uniform(rng, 0.1, 0.4)
    rows, columns, inside = _draw_strip(image, rng, length, width)
    return torch.where(inside, _jitter(image[:, rows, columns], rng, always=True), image)


def blend(image: Tensor, rng: Generator) -> Tensor:
    """Let other content show through where smooth noise is high, opacity 0.2 to 0.8. (C, H, W) float -> the same."""
    _, height, width = image.shape
    row, column = _uniform(rng, 0.1, 0.9), _uniform(rng, 0.1, 0.9)
    down = (torch.arange(height) / height - row)[:, None]
    right = torch.arange(width) / width - column
    reach = _log_uniform(rng, 0.05, 0.25)
    waves = 4 + _randint(rng, 9)
    coarse = torch.randn(1, 1, waves, waves, generator=rng)
    noise = functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)[0, 0]
    field = 0.45 * noise + 1 - (down**2 + right**2) / reach**2  # noise alone would cover the whole image
    sharpness = _log_uniform(rng, 1.5, 20)
    alpha = (field * sharpness).clamp(0, 1) * _uniform(rng, 0.2, 0.8)
    moved = (_randint(rng, height), _randint(rng, width))
    other = _jitter(image.flip(1 + _randint(rng, 2)).roll(moved, (1, 2)), rng, always=True)
    return image + alpha * (other - image)


def _draw_strip(image: Tensor, rng: Generator, length: float, width: float) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a rotated rectangle and, for each of its pixels, another one of the image to copy.

    Args:
        image: (C, H, W).
        rng: draws position and angle of the rectangle and of what is copied.
        length: as a fraction of the image's side.
        width: as a fraction of the image's side; at least one pixel is taken.

    Returns:
        Rows and columns of the copied pixels, (H, W) int64, and the rectangle, (H, W) bool.
    """
    _, height, across = image.shape
    side = math.sqrt(height * across)
    angle = _uniform(rng, 0, math.pi)
    down = torch.arange(height)[:, None] - _uniform(rng, 0.1, 0.9) * height
    right = torch.arange(across) - _uniform(rng, 0.1, 0.9) * across
    along = right * math.cos(angle) + down * math.sin(angle)
    beside = down * math.cos(angle) - right * math.sin(angle)
    inside = (along.abs() <= max(length * side, 3) / 2) & (beside.abs() <= max(width * side, 1.5) / 2)
    turn = angle * _randint(rng, 2)  # upright as it was, or rotated with the rectangle
    rows = _uniform(rng, 0, 1) * height + along * math.sin(turn) + beside * math.cos(turn)
    columns = _uniform(rng, 0, 1) * across + along * math.cos(turn) - beside * math.sin(turn)
    return _reflect(rows, height), _reflect(columns, across), inside


def _reflect(index: Tensor, size: int) -> Tensor:
    index = index.round().long() % (2 * size)  # integer indices in [0, size), reflected at the borders
    return torch.minimum(index, 2 * size - 1 - index)


def _jitter(content: Tensor, rng: Generator, always: bool = False) -> Tensor:
    """Change brightness by 8 to 60 grey levels, contrast and tint a little; half the time unless `always`."""
    strength = _log_uniform(rng, 8, 60)
    sign = 1 - 2 * _randint(rng, 2)
    tint = 1 + 0.25 * torch.randn(len(content), 1, 1, generator=rng)
    contrast = _uniform(rng, 0.8, 1.2)
    if not always and _randint(rng, 2):
        return content
    return (content - 128) * contrast + 128 + sign * strength * tint


def _uniform(rng: Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=rng).item()


def _log_uniform(rng: Generator, low: float, high: float) -> float:
    return math.exp(_uniform(rng, math.log(low), math.log(high)))


def _randint(rng: Generator, count: int) -> int:
    return int(torch.randint(count, (), generator=rng))  # 0 to count - 1
