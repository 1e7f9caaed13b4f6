"""Augmentation of training images in batches, on the device they are on (article, section 3: crop, rotation, flip)."""

from copy import copy
from typing import Annotated, Any

import kornia.augmentation as K
import torch
from pydantic import Field
from torch import Tensor

from adlight.data.frames import group_by_size
from adlight.data.images import FILL
from adlight.settings import PositiveShare, Share, checked
from adlight.types import Batch


class Augmentation:
    """Random rotation, flips and resized crop, drawn for each image; corners are filled from the border.

    Args:
        crop: smallest share of the area that a crop keeps; 1 = no crop.
        rotation: largest angle in degrees, either way; 0 = none.
        horizontal_flip: probability.
        vertical_flip: probability.
    """

    @checked
    def __init__(
        self,
        crop: PositiveShare = 0.8,
        rotation: Annotated[float, Field(ge=0, le=180)] = 10.0,
        horizontal_flip: Share = 0.5,
        vertical_flip: Share = 0.0,
    ) -> None:
        steps: list[Any] = []
        if rotation > 0:
            steps.append(K.RandomAffine(degrees=rotation, padding_mode="border", p=1.0))
        if horizontal_flip > 0:
            steps.append(K.RandomHorizontalFlip(p=horizontal_flip))
        if vertical_flip > 0:
            steps.append(K.RandomVerticalFlip(p=vertical_flip))
        self.crop = crop
        self.steps = steps
        self.pipelines: dict[torch.Size, K.AugmentationSequential] = {}

    def __call__(self, image: Tensor, seed: int, size: Tensor | None = None) -> Tensor:
        """Augment (B, C, H, W) in [0, 1]; determined by the seed; torch's own state is left alone.

        Args:
            image: is not changed.
            seed: of all draws.
            size: (B, 2), height and width of images that are padded; the padding stays.
        """
        with torch.random.fork_rng(devices=[]):  # kornia draws its parameters on the CPU
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too, for good
            if size is None:
                return self._pipeline(image.shape[-2:])(image)
            image = image.clone()
            for rows, height, width in group_by_size(size):
                pipeline = self._pipeline(torch.Size((height, width)))
                image[rows, :, :height, :width] = pipeline(image[rows, :, :height, :width])
            return image

    def _pipeline(self, size: torch.Size) -> K.AugmentationSequential:
        if size not in self.pipelines:
            self.pipelines[size] = K.AugmentationSequential(*self.steps, *self._crop(size), data_keys=["input"])
        return self.pipelines[size]

    def _crop(self, size: torch.Size) -> list[Any]:
        """Crop to about the shape of the image, whatever that is."""
        if self.crop >= 1:
            return []
        (height, width), shape = size, size[1] / size[0]
        scale, ratio = (self.crop, 1.0), (3 / 4 * shape, 4 / 3 * shape)
        return [K.RandomResizedCrop((height, width), scale=scale, ratio=ratio, p=1.0)]


def augment(batch: Batch, augmentation: Augmentation, seed: int) -> None:
    """Augment a batch's images in [0, 1]; the region of interest moves with them, by the same draws."""
    size = batch.get("size")
    batch["image"] = augmentation(batch["image"], seed, size)
    if "content" in batch:
        geometry = copy(augmentation)
        vars(geometry).update(brightness=0.0, contrast=0.0)  # light changes no mask
        batch["content"] = geometry(batch["content"][:, None].float(), seed, size)[:, 0] > 0.999  # (B, H, W)
        batch["image"] = batch["image"].where(batch["content"][:, None], FILL / 255)
