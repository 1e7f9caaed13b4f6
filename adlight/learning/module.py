"""The tests and validations of a detector that has learned from labels; nothing of it is trained by gradient."""

from typing import Any, cast

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from adlight.detection.module import AnomalyModule
from adlight.learning.detector import LearnedDetector
from adlight.settings import Built, checked
from adlight.types import Batch


class LearnedModule(LearnedDetector, AnomalyModule):
    """Validates and tests a learned detector.

    Held-out normal images, to whose cells the head was fitted too, are scored by the head of the other folds: they
    calibrate the thresholds.

    Args:
        detector: the frozen one.
        width, defects, normals, folds: as of `LearnedDetector`.
    """

    @checked
    def __init__(
        self,
        detector: Built[AnomalyModule],
        width: PositiveInt,
        defects: NonNegativeInt = 0,
        normals: NonNegativeInt = 0,
        folds: PositiveInt = 5,
    ) -> None:
        super().__init__(detector, width, defects, normals, folds)
        self.validates = False

    @property
    def trained(self) -> AnomalyModule:
        """The frozen detector with its training's hooks."""
        return cast(AnomalyModule, self.detector)

    def describe(self) -> list[str]:
        """Say what the detector is, and how many labels it has learned from."""
        return [*self.trained.describe(), f"learned from {self.num_defects} labelled defects"]

    def metadata(self) -> dict[str, Any]:
        """Give what belongs into a result's file."""
        return {**self.trained.metadata(), "labelled": {"defects": self.num_defects, "normals": self.num_normals}}

    def on_validation_epoch_start(self) -> None:
        """Begin the detector's validation too."""
        super().on_validation_epoch_start()
        self.trained.on_validation_epoch_start()
        self.validates = True

    def on_validation_epoch_end(self) -> None:
        """Calibrate; images are scored as unseen ones from now on."""
        super().on_validation_epoch_end()
        self.validates = False
        self.trained.leave_split()

    def on_test_epoch_start(self) -> None:
        """Begin the detector's test too."""
        super().on_test_epoch_start()
        self.trained.on_test_epoch_start()

    def on_test_epoch_end(self) -> None:
        """Compute the results."""
        super().on_test_epoch_end()
        self.trained.leave_split()

    def rows_of(self, batch: Batch) -> Tensor:
        """Give the row of `weight` by which each image is scored, (B,)."""
        if not self.validates:
            return super().rows_of(batch)
        return 1 + fold_of(batch["index"], self.datamodule.val_defects, self.folds)


def fold_of(index: Tensor, copies: int, folds: int) -> Tensor:
    """Give the fold of held-out images, a normal one and its defective copies in one. (B,) -> (B,)."""
    return torch.div(index, 1 + copies, rounding_mode="floor") % folds
