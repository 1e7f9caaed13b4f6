"""Augmentation of training batches on their device (article, section 3: crop, rotation, flip)."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor
from torch.nn.functional import grid_sample

from adlight.data.frames import group_by_size
from adlight.data.images import FILL
from adlight.rng import to_device
from adlight.settings import PositiveShare, Share, checked
from adlight.types import Batch

TRIES = 10  # draws of a crop's area and shape, as in torchvision; if none fits, the whole image is kept
MAX_ASPECT = 4 / 3  # of a crop, whichever side is longer


class Augmentation:
    """Random rotation, flips and resized crops, drawn for each image; corners repeat the border.

    Together they are one affine map, so that an image is interpolated (bilinearly) only once, and not at all by flips
    alone. Brightness and contrast may also vary, as the light in a factory does.

    Args:
        crop: smallest fraction of the area that a crop keeps; 1 for no crop.
        rotation: largest angle in degrees, in both directions; 0 for none.
        horizontal_flip, vertical_flip: probabilities.
        brightness: largest shift of all values, in both directions, as a fraction of their range; 0 for none.
        contrast: largest relative change of the distance from the mean, in both directions; 0 for none.
    """

    @checked
    def __init__(
        self,
        crop: PositiveShare = 0.8,
        rotation: Annotated[float, Field(ge=0, le=180)] = 10.0,
        horizontal_flip: Share = 0.5,
        vertical_flip: Share = 0.0,
        brightness: Share = 0.0,
        contrast: Share = 0.0,
    ) -> None:
        self.crop, self.rotation, self.brightness, self.contrast = crop, rotation, brightness, contrast
        self.flips = torch.tensor([horizontal_flip, vertical_flip])

    def __call__(self, image: Tensor, seed: int, size: Tensor | None = None, light: bool = True) -> Tensor:
        """Return augmented images (B, C, H, W) in [0, 1]; the seed determines all draws, not torch's generators.

        `image` is uint8 or in [0, 1]. The padding beyond heights and widths `size` (B, 2) stays. Without `light`,
        brightness and contrast stay too.
        """
        drawn = to_device(self._draw(len(image), Generator().manual_seed(seed)), image.device)  # (B, 7)
        if size is None:
            return self._apply(image, drawn, light)
        image = _to_unit(image).clone()
        for rows, height, width in group_by_size(size):
            image[rows, :, :height, :width] = self._apply(image[rows, :, :height, :width], drawn[rows], light)
        return image

    def _draw(self, count: int, rng: Generator) -> Tensor:
        """Draw angle, scale (x, y; negative if flipped), offset (x, y; sides have length 2) and light. -> (B, 7)."""
        angle = (2 * torch.rand(count, 1, generator=rng) - 1) * math.radians(self.rotation)
        sign = 1.0 - 2 * (torch.rand(count, 2, generator=rng) < self.flips).float()
        extent = draw_crops(count, self.crop, rng)
        center = (1 - extent) * (2 * torch.rand(count, 2, generator=rng) - 1)
        light = 2 * torch.rand(count, 2, generator=rng) - 1
        return torch.cat([angle, sign * extent, sign * center, light], 1)

    def _apply(self, image: Tensor, drawn: Tensor, light: bool) -> Tensor:
        step = torch.get_num_threads()
        if image.device.type == "cpu" and len(image) > step:  # so that the floats and grids at work fit into the caches
            result = torch.empty(image.shape)
            for start in range(0, len(image), step):
                part = slice(start, start + step)
                result[part] = self._apply(image[part], drawn[part], light)
            return result
        image = _to_unit(image)
        if light and (self.brightness or self.contrast):
            from kornia.enhance import adjust_brightness, adjust_contrast_with_mean_subtraction  # takes a second

            image = adjust_brightness(image, self.brightness * drawn[:, 5])
            image = adjust_contrast_with_mean_subtraction(image, 1 + self.contrast * drawn[:, 6])
        if self.crop < 1 or self.rotation > 0:
            grid = make_grid(drawn, *image.shape[-2:])
            return grid_sample(image, grid, padding_mode="border", align_corners=False)
        for axis, sign in ((3, drawn[:, 1]), (2, drawn[:, 2])):
            image = torch.where(sign[:, None, None, None] < 0, image.flip(axis), image)
        return image


def draw_crops(count: int, smallest: float, rng: Generator) -> Tensor:
    """Draw the fractions of width and height that crops keep, as torchvision's `RandomResizedCrop` does. -> (count, 2).

    The area, at least `smallest`, and the logarithm of the aspect ratio are uniform; crops that do not fit are redrawn.
    """
    area = smallest + (1 - smallest) * torch.rand(count, TRIES, generator=rng)
    shape = ((2 * torch.rand(count, TRIES, generator=rng) - 1) * math.log(MAX_ASPECT)).exp()
    extent = torch.stack([area * shape, area / shape], -1).sqrt()  # (count, TRIES, 2)
    fits = (extent <= 1).all(-1)
    first = extent[torch.arange(count), fits.int().argmax(1)]  # (count, 2)
    return torch.where(fits.any(1, keepdim=True), first, 1.0)


def make_grid(drawn: Tensor, height: int, width: int) -> Tensor:
    """Compute the points of the image, x and y in [-1, 1], that pixels are sampled from. (B, 7) -> (B, H, W, 2)."""
    x, y = ((2 * torch.arange(side, device=drawn.device) + 1) / side - 1 for side in (width, height))
    angle, scale_x, scale_y, offset_x, offset_y = drawn.T[:5, :, None]  # (B, 1) each
    x, y = offset_x + scale_x * x, offset_y + scale_y * y  # (B, W), (B, H)
    cos, sin, shape = angle.cos(), angle.sin(), height / width
    grid = drawn.new_empty(len(drawn), height, width, 2)
    torch.add((cos * x)[:, None, :], (-sin * shape * y)[:, :, None], out=grid[..., 0])
    torch.add((sin / shape * x)[:, None, :], (cos * y)[:, :, None], out=grid[..., 1])
    return grid


def _to_unit(image: Tensor) -> Tensor:
    return image.float().div_(255) if image.dtype == torch.uint8 else image


def augment(batch: Batch, augmentation: Augmentation, seed: int) -> None:
    """Augment a batch's images, uint8 or in [0, 1], together with the region of interest."""
    size, image = batch.get("size"), batch["image"]
    own = isinstance(augmentation, Augmentation)  # other classes may expect [0, 1]
    batch["image"] = augmentation(image if own else _to_unit(image), seed, size)  # (B, C, H, W)
    if "content" in batch:
        moved = augmentation(batch["content"][:, None].float(), seed, size, light=False)  # (B, 1, H, W)
        batch["content"] = moved[:, 0] > 0.999  # (B, H, W)
        batch["image"] = batch["image"].where(batch["content"][:, None], FILL / 255)
