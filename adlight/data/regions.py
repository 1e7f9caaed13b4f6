"""Building blocks of pseudo-anomalies: random regions of an image, and the content that fills them."""

import math
from typing import NamedTuple

import torch
from scipy import fft
from torch import Generator, Tensor
from torch.nn import functional


class Region(NamedTuple):
    """The region of a defect: its opacity, its center and its radius in pixels."""

    alpha: Tensor  # (H, W) in [0, 1]
    row: float
    column: float
    radius: float


def draw_blob(image: Tensor, rng: Generator) -> Region:
    """Draw an irregular ellipse that covers about 0.15 to 3 % of the image (C, H, W), with hard or soft edges."""
    row, column = draw_place(image, rng)
    radius = max(2.0, math.sqrt(image[0].numel() * log_uniform(rng, 0.0015, 0.03) / math.pi))
    stretch, angle = math.sqrt(log_uniform(rng, 0.4, 2.5)), uniform(rng, 0, math.pi)
    down, right = measure_offsets(image, row, column)
    along = (right * math.cos(angle) + down * math.sin(angle)) / (radius * stretch)
    beside = (down * math.cos(angle) - right * math.sin(angle)) / (radius / stretch)
    coarse = torch.randn(1, 1, 5, 5, generator=rng)
    window = torch.stack([beside / 2, along / 2], -1)[None]  # the noise covers twice the ellipse
    noise = functional.grid_sample(coarse, window, padding_mode="border", align_corners=True)[0, 0]
    field = (1 - (along.square() + beside.square()).sqrt() + 0.15 * noise) * log_uniform(rng, 2, 20)
    return Region(field.clamp(0, 1), row, column, radius)


def take(image: Tensor, region: Region, step: tuple[float, float], turn: float = 0.0) -> Tensor:
    """Copy content from `step` (rows, columns) away, rotated by `turn` about the region's center. -> (C, H, W)."""
    _, height, width = image.shape
    down, right = measure_offsets(image, region.row, region.column)
    rows = region.row + step[0] + down * math.cos(turn) + right * math.sin(turn)
    columns = region.column + step[1] + right * math.cos(turn) - down * math.sin(turn)
    return image[:, _reflect(rows, height), _reflect(columns, width)]


def blend_seamlessly(image: Tensor, content: Tensor, alpha: Tensor) -> Tensor:
    """Blend content into the bounding box of a region without a seam (Perez 2003). Images are (C, H, W).

    The content keeps its gradients, and gets the image's values on the border of the box.
    """
    inside = alpha > 0
    if not inside.any():
        return content
    (top, bottom), (left, right) = (
        (max(int(found.min()) - 1, 0), min(int(found.max()) + 2, size))
        for found, size in zip(inside.nonzero().T, inside.shape, strict=True)
    )
    box = (slice(None), slice(top, bottom), slice(left, right))
    if min(bottom - top, right - left) < 3:
        return content
    blended = content.clone()
    blended[box] += fill_harmonically(image[box] - content[box])
    return blended


def fill_harmonically(values: Tensor) -> Tensor:
    """Replace all but the border by the solution of Laplace's equation, by a sine transform. (C, h, w), h and w > 2."""
    filled = values.clone()
    filled[:, 1:-1, 1:-1] = 0
    flow = filled[:, :-2, 1:-1] + filled[:, 2:, 1:-1] + filled[:, 1:-1, :-2] + filled[:, 1:-1, 2:]
    rows, columns = (2 - 2 * torch.arange(1, n + 1).mul(math.pi / (n + 1)).cos() for n in flow.shape[1:])
    waves = fft.dstn(flow.numpy(), type=1, axes=(1, 2)) / (rows[:, None] + columns).numpy()
    filled[:, 1:-1, 1:-1] = torch.from_numpy(fft.idstn(waves, type=1, axes=(1, 2)))
    return filled


def blend(image: Tensor, content: Tensor, alpha: Tensor) -> Tensor:
    """Blend content (C, H, W) over an image (C, H, W) with opacity `alpha` (H, W)."""
    return image + alpha * (content - image)


def measure_offsets(image: Tensor, row: float, column: float) -> tuple[Tensor, Tensor]:
    """Measure the offsets of each pixel from a point, downwards and to the right. -> (H, W), (H, W)."""
    _, height, width = image.shape
    down, right = torch.arange(height) - row, torch.arange(width) - column
    return down[:, None].expand(height, width), right.expand(height, width)


def draw_place(image: Tensor, rng: Generator) -> tuple[float, float]:
    """Draw a point, in three of four cases with a probability proportional to local detail. -> row, column."""
    _, height, width = image.shape
    grid = min(16, height), min(16, width)
    detail = (image - functional.avg_pool2d(image, 5, 1, 2, count_include_pad=False)).abs().mean(0, keepdim=True)
    weight = functional.adaptive_avg_pool2d(detail, grid).flatten()
    if not weight.sum() > 0 or randint(rng, 4) == 0:
        weight = torch.ones_like(weight)
    cell = int(torch.multinomial(weight, 1, generator=rng))
    row, column = divmod(cell, grid[1])
    row_part, column_part = uniform(rng, 0, 1), uniform(rng, 0, 1)
    return (row + row_part) * height / grid[0], (column + column_part) * width / grid[1]


def draw_step(rng: Generator, length: float) -> tuple[float, float]:
    """Draw a step of `length` in a random direction. -> rows, columns."""
    angle = uniform(rng, 0, 2 * math.pi)
    return length * math.sin(angle), length * math.cos(angle)


def draw_tint(image: Tensor, rng: Generator, low: float, high: float) -> Tensor:
    """Draw a positive or negative change of grey levels that varies slightly between channels. -> (C, 1, 1)."""
    size = log_uniform(rng, low, high) * (1 - 2 * randint(rng, 2))
    return size * (1 + 0.25 * torch.randn(len(image), 1, 1, generator=rng))


def _reflect(index: Tensor, size: int) -> Tensor:
    index = index.round().long() % (2 * size)
    return torch.minimum(index, 2 * size - 1 - index)


def uniform(rng: Generator, low: float, high: float) -> float:
    """Draw a number from [low, high)."""
    return low + (high - low) * torch.rand((), generator=rng).item()


def log_uniform(rng: Generator, low: float, high: float) -> float:
    """Draw a number with a uniform logarithm from [low, high)."""
    return math.exp(uniform(rng, math.log(low), math.log(high)))


def randint(rng: Generator, count: int) -> int:
    """Draw an integer from [0, count)."""
    return int(torch.randint(count, (), generator=rng))
