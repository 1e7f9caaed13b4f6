"""The category of an image, which determines its thresholds."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from adlight.detection.classifier import AUTO, CategoryClassifier
from adlight.metrics.thresholds import Calibration
from adlight.types import UserError, unknown_name

POOLED = "pooled"  # a category named `pooled` or `auto` takes precedence


class CategoryRule:
    """Determines the category whose thresholds apply to an image; an unknown category is a UserError.

    Args:
        asked: a category for all images; `auto`: the category that `classifier`, which must have been fitted, finds for
            each image; `pooled`: the thresholds of all categories together; None: the only category, or the innermost
            folder in an image's path that is named after a category.
        calibration: the thresholds.
        classifier: finds the category of an image.
    """

    def __init__(self, asked: str | None, calibration: Calibration, classifier: CategoryClassifier) -> None:
        if asked is not None and not isinstance(asked, str):
            raise UserError(f"category must be a string, got {asked!r}")
        self.known, self.calibration, self.classifier = list(calibration.categories), calibration, classifier
        alone = len(self.known) == 1 and not classifier.names
        if asked is not None and asked not in (*self.known, AUTO, POOLED):
            raise UserError(unknown_name("category", asked, (*self.known, AUTO, POOLED)))
        self.asked = self.known[0] if alone and asked in (None, AUTO) else asked
        self.by_looks = self.asked == AUTO and AUTO not in self.known
        if self.by_looks and not classifier.names:
            raise UserError(f"category={AUTO}: this model has no category classifier: train it again")

    @property
    def is_decisive(self) -> bool:
        """Whether thresholds differ by category."""
        given = self.calibration.image.is_number and self.calibration.pixel.is_number
        return bool(self.calibration.by_category) and not given

    def check(self, paths: Iterable[Path]) -> None:
        """Raise a UserError if the category of an image is unknown, before any image is read."""
        if not self.by_looks:
            for path in paths:
                self.of_path(path)

    def guess(self, path: Path | None) -> str | None:
        """Determine the category of an image by its path, whether or not thresholds differ; None if it is unknown."""
        if self.asked in self.known:
            return self.asked
        return self._folder_of(path) or (self.known[0] if len(self.known) == 1 else None)

    def of_path(self, path: Path | None) -> str | None:
        """Determine an image's category by its path, or raise a UserError; None stands for the pooled thresholds."""
        if self.asked in self.known:
            return self.asked
        if self.asked == POOLED or not self.is_decisive:
            return None
        if found := self._folder_of(path):
            return found
        auto = f", category={AUTO}" if self.classifier.names else ""
        raise UserError(
            f"the category of {path or 'an image without a path'} is unknown ({', '.join(self.known)}?): set "
            f"category=<name>{auto} or category={POOLED} (thresholds of all together), or name its folder after its "
            "category"
        )

    def _folder_of(self, path: Path | None) -> str | None:
        folders = path.absolute().parent.parts if path else ()
        return next((folder for folder in reversed(folders) if folder in self.known), None)

    def __call__(self, paths: Sequence[Path | None], pixels: np.ndarray, size: np.ndarray | None) -> list[str | None]:
        """Determine the categories of images by their paths or pixels (B, C, H, W) uint8, or raise a UserError.

        `size` (B, 2) holds the heights and widths of padded images.
        """
        if not self.by_looks or not self.is_decisive:
            return [self.of_path(path) for path in paths]
        import torch

        sizes = None if size is None else torch.from_numpy(size)
        names = self.classifier(torch.from_numpy(pixels).float() / 255, sizes)
        for path, name in zip(paths, names, strict=True):
            if name not in self.known:
                raise UserError(
                    f"{path or 'an image'} looks like {name}, which has no thresholds: none of its normal images was "
                    "held out for validation"
                )
        return list(names)
