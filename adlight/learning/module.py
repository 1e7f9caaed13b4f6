"""Validate and test a detector that has learned from labels; nothing is trained by gradient descent."""

from typing import Any, cast

import torch
from torch import Tensor

from adlight.detection.module import AnomalyModule
from adlight.learning.detector import LearnedDetector
from adlight.types import Batch


class LearnedModule(LearnedDetector, AnomalyModule):
    """Validates and tests a learned detector, whose frozen detector is a module too.

    The held-out normal images that calibrate the thresholds are also used to fit the head. In a validation, each image
    is therefore scored by the head fitted without the image's fold.
    """

    validates = False

    @property
    def trained(self) -> AnomalyModule:
        """The frozen detector as a module."""
        return cast(AnomalyModule, self.detector)

    def describe(self) -> list[str]:
        """Return lines that describe the detector and the number of labelled defects."""
        return [*self.trained.describe(), f"learned from {self.num_defects} labelled defects"]

    def metadata(self) -> dict[str, Any]:
        """Return the detector's entries of a result file."""
        return {**self.trained.metadata(), "labelled": {"defects": self.num_defects, "normals": self.num_normals}}

    def on_validation_epoch_start(self) -> None:
        """Start a validation, of the frozen detector too."""
        super().on_validation_epoch_start()
        self.trained.on_validation_epoch_start()
        self.validates = True

    def on_test_epoch_start(self) -> None:
        """Start a test, of the frozen detector too."""
        super().on_test_epoch_start()
        self.trained.on_test_epoch_start()

    def leave_split(self) -> None:
        """From now on, treat images as unseen."""
        self.validates = False
        self.trained.leave_split()

    def rows_of(self, batch: Batch) -> Tensor:
        """Return each image's row of `weight`, (B,): in a validation, the head fitted without the image's fold."""
        if not self.validates:
            return super().rows_of(batch)
        return 1 + image_numbers(batch, self.datamodule.val_defects) % self.folds


def image_numbers(batch: Batch, copies: int) -> Tensor:
    """Return the numbers of held-out images, (B,); an image, its anomalous copies and all their tiles share one."""
    return batch["tile"][:, 0] if "tile" in batch else torch.div(batch["index"], 1 + copies, rounding_mode="floor")
