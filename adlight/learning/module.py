"""Validation and test of a detector that has learned from labels; nothing is trained by gradient descent."""

from typing import Any, cast

import torch
from torch import Tensor

from adlight.detection.module import AnomalyModule
from adlight.learning.detector import LearnedDetector
from adlight.types import Batch


class LearnedModule(LearnedDetector, AnomalyModule):
    """Validates and tests a learned detector, whose frozen detector is a module too.

    The head is fitted to the cells of held-out normal images too, which calibrate the thresholds, so in a validation
    each of them is scored by the head of the other folds.
    """

    validates = False

    @property
    def trained(self) -> AnomalyModule:
        """The frozen detector as a module."""
        return cast(AnomalyModule, self.detector)

    def describe(self) -> list[str]:
        """Describe the detector and the number of labelled defects, in lines."""
        return [*self.trained.describe(), f"learned from {self.num_defects} labelled defects"]

    def metadata(self) -> dict[str, Any]:
        """Return what a result file records about the detector."""
        return {**self.trained.metadata(), "labelled": {"defects": self.num_defects, "normals": self.num_normals}}

    def on_validation_epoch_start(self) -> None:
        """Begin the validation of the frozen detector too."""
        super().on_validation_epoch_start()
        self.trained.on_validation_epoch_start()
        self.validates = True

    def on_test_epoch_start(self) -> None:
        """Begin the test of the frozen detector too."""
        super().on_test_epoch_start()
        self.trained.on_test_epoch_start()

    def leave_split(self) -> None:
        """Score images as unseen ones from now on."""
        self.validates = False
        self.trained.leave_split()

    def rows_of(self, batch: Batch) -> Tensor:
        """Return the row of `weight` for each image, (B,): in a validation, of the head without the image's fold."""
        if not self.validates:
            return super().rows_of(batch)
        return 1 + image_numbers(batch, self.datamodule.val_defects) % self.folds


def image_numbers(batch: Batch, copies: int) -> Tensor:
    """Return the numbers of held-out images, equal for an image, its anomalous copies and all their tiles. -> (B,)."""
    return batch["tile"][:, 0] if "tile" in batch else torch.div(batch["index"], 1 + copies, rounding_mode="floor")
