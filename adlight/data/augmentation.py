"""Augmentation of training images in batches, on the device they are on (article, section 3: crop, rotation, flip)."""

from typing import Any

import kornia.augmentation as K
import torch
from torch import Tensor


class Augmentation:
    """Random rotation, flips and resized crop, drawn for each image; corners are filled from the border.

    Args:
        crop: smallest share of the area that a crop keeps; 1 = no crop.
        rotation: largest angle in degrees, either way; 0 = none.
        horizontal_flip: probability.
        vertical_flip: probability.
    """

    def __init__(
        self,
        crop: float = 0.8,
        rotation: float = 10.0,
        horizontal_flip: float = 0.5,
        vertical_flip: float = 0.0,
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
        self.pipelines: dict[int, K.AugmentationSequential] = {}

    def __call__(self, image: Tensor, seed: int) -> Tensor:
        """Augment (B, C, H, W) in [0, 1]; determined by the seed; torch's own state is left alone."""
        size = image.shape[-1]
        if size not in self.pipelines:
            crop = [K.RandomResizedCrop((size, size), scale=(self.crop, 1.0), p=1.0)] if self.crop < 1 else []
            self.pipelines[size] = K.AugmentationSequential(*self.steps, *crop, data_keys=["input"])
        with torch.random.fork_rng(devices=[]):  # kornia draws its parameters on the CPU
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too, for good
            return self.pipelines[size](image)
