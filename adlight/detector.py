"""Finished runs as plain Python objects, without trainer and data set: `Detector.load(run)(["a.png", image])`."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from copy import copy, deepcopy
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from adlight.data.frames import Frame, Size, WholeFrame
from adlight.data.image_files import ADVICE
from adlight.data.images import AnyImage, PreparedImage, prepare_image
from adlight.data.roi import check_selection, make_selection, stack_contents, stack_pixels
from adlight.data.tiling import Tiling
from adlight.detection.categories import CategoryRule
from adlight.detection.predictions import check_calibrated, make_predictions, score_by_tiles
from adlight.metrics.methods import parse_number
from adlight.runs.exported import check_arguments, is_exported, load_exported
from adlight.types import Prediction, Unreadable, UserError

if TYPE_CHECKING:  # importing torch takes seconds, and exported graphs do not need it
    import torch

    from adlight.detection.detector import AnomalyDetector
    from adlight.detection.session import GraphDetector


class Detector:
    """Predicts with a trained module; the prediction for an image does not depend on other images in its batch.

    Args:
        module: the module, with weights and calibrated thresholds.
        image_size: side, or height and width, to which images are resized, as in training.
        channels: 3, or 1 for grey images.
        precision: precision of the trainer, in which the thresholds were calibrated.
        device: device to compute on.
        batch_size: number of images, or tiles, at a time.
        resize, keep_shape: as in training, see `Frame`.
        category: category of all images; `auto`: determined by the looks of each image; `pooled`: the thresholds of all
            categories together; None: the model's only category, or the innermost folder of a path that names one.
        roi: the region of interest, see `RegionOfInterest`; None for whole images.
        tiling: cuts images into tiles of the size that the module expects; None for whole images.

    Raises:
        UserError: batch_size is below 1, precision or category are unknown, or roi or tiling are unsupported.
    """

    def __init__(
        self,
        module: "AnomalyDetector | GraphDetector",
        image_size: Size,
        channels: int = 3,
        precision: str = "32-true",
        device: "str | torch.device" = "cpu",
        batch_size: int = 32,
        resize: Size | None = None,
        keep_shape: bool | None = False,
        category: str | None = None,
        roi: str | Path | None = None,
        tiling: Tiling | None = None,
    ) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size must be an integer, at least 1, got {batch_size!r}")
        check_selection(module.takes_padding, bool(keep_shape), roi, tiling)
        self.module, self.device, self.scorer = module, str(device), module.make_scorer(str(precision), device)
        self.frame, self.tiling = WholeFrame() if tiling else Frame(image_size, resize, bool(keep_shape)), tiling
        self.channels, self.roi = channels, roi
        self.batch_size, self.images_at_once = batch_size, 1 if tiling else batch_size
        self.calibration = deepcopy(module.calibration)
        self.category_rule = CategoryRule(category, self.calibration, module.classifier)
        self.select = make_selection(roi, channels, self.frame, self.category_rule.guess)

    @classmethod
    def load(
        cls,
        run: str | Path,
        ckpt: str | Path | None = None,
        device: str = "auto",
        overrides: Iterable[str] = (),
        batch_size: int = 32,
        category: str | None = None,
        **inputs: Any,
    ) -> "Detector":
        """Load a finished run, or a graph that `adlight.export` wrote.

        Args:
            run: the folder of a run or evaluation, or a graph `detector.onnx`, which needs neither it nor PyTorch.
            ckpt: `best`, `last` or a path; None for the checkpoint that the run tested.
            device: `cpu`, `cuda`, `cuda:1`, ...; `auto` prefers a GPU.
            overrides: changes to the run's config (`model.scorer.reduce=max`); they invalidate its thresholds.
            batch_size: see `Detector`.
            category: see `Detector`.
            inputs: `roi`, `tile` or `overlap` instead of the run's; other tiles invalidate its thresholds, and so does
                a region of interest if the run has none.

        Raises:
            UserError: the run, checkpoint, device or category does not exist, or the checkpoint does not fit the model.
        """
        changes = check_arguments(run, overrides, inputs)
        if is_exported(run):
            for name, value in {"ckpt": ckpt, "overrides": changes or None, **inputs}.items():
                if value is not None:
                    raise UserError(f"{name}: {run} is a graph, in which it is fixed: use the run instead")
            graph, frame = load_exported(run, device)
            return cls(graph, **frame, batch_size=batch_size, category=category)
        from adlight.detection.inference import find_device
        from adlight.runs.restore import restore

        module, settings, is_calibrated = restore(run, ckpt, changes, inputs)
        if not is_calibrated:
            CategoryRule(category, module.calibration, module.classifier)  # raises if the category is unknown
            module.calibration.reset()
            category = None  # no category has thresholds now
        return cls(module, **settings, device=find_device(device), batch_size=batch_size, category=category)

    def with_category(self, category: str | None) -> "Detector":
        """Return a copy with another category's thresholds, sharing all else; raise a UserError if it is unknown."""
        other = copy(self)
        other.category_rule = CategoryRule(category, self.calibration, self.category_rule.classifier)
        other.select = make_selection(self.roi, self.channels, self.frame, other.category_rule.guess)
        return other

    @property
    def threshold(self) -> float:
        """Score above which an image of `category` is anomalous; a value that is set applies to every image."""
        return self.calibration.of(self.category_rule.of_path(None)).image

    @threshold.setter
    def threshold(self, value: float | str) -> None:
        self.calibration.image = parse_number("threshold", value)

    @property
    def pixel_threshold(self) -> float:
        """Score above which a pixel is part of a defect; a value that is set applies to every image."""
        return self.calibration.of(self.category_rule.of_path(None)).pixel

    @pixel_threshold.setter
    def pixel_threshold(self, value: float | str) -> None:
        self.calibration.pixel = parse_number("pixel_threshold", value)

    def __call__(
        self, images: AnyImage | Iterable[AnyImage], reconstruct: bool = True, range: tuple[float, float] | None = None
    ) -> list[Prediction | Unreadable]:
        """Predict for each image, in order. Pass many in parts: all maps and masks are kept (large ones in files).

        Args:
            images: one or several paths, PIL images, arrays (H, W) or (H, W, C), or tensors (H, W) or (C, H, W), of
                uint8 or uint16, which may differ in size; or a tensor (B, C, H, W) or array (B, H, W, C).
            reconstruct: whether to make reconstructions, which take a fifth of the time in feature space.
            range: values of black and white in images of floats, such as (0, 1).

        Raises:
            UserError: an array is not an image, there is no threshold, or a single file is unreadable; among several
                images, an `Unreadable` takes the place of its prediction.
        """
        alone = isinstance(images, str | bytes | Path | Image.Image) or not isinstance(images, Iterable)
        single = alone or getattr(images, "ndim", 4) < 4  # of arrays and tensors
        rest, predictions = iter([images] if single else images), list[Prediction | Unreadable]()  # type: ignore[arg-type]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes and resizes without the GIL
            while batch := list(islice(rest, self.images_at_once)):
                prepared = list(pool.map(self.prepare, batch, repeat(range)))
                readable = [image for image in prepared if isinstance(image, PreparedImage)]
                predicted = iter(self.predict(readable, reconstruct) if readable else ())
                predictions += [image if isinstance(image, Unreadable) else next(predicted) for image in prepared]
        if single and isinstance(predictions[0], Unreadable):
            raise UserError(predictions[0].error)
        return predictions

    def prepare(self, image: AnyImage, range: tuple[float, float] | None = None) -> PreparedImage | Unreadable:
        """Decode and resize an image as in training; raise a UserError for an invalid image that is not a file."""
        try:
            return prepare_image(image, self.channels, self.frame, range, self.select)
        except UserError as error:
            if not isinstance(image, str | Path):
                raise
            return Unreadable(str(image), str(error).removesuffix(ADVICE))

    def predict(self, batch: list[PreparedImage], reconstruct: bool = True) -> list[Prediction]:
        """Predict for a batch of prepared images, see `__call__`.

        Raises:
            UserError: a category is unknown, a threshold is neither calibrated nor set, or scores are not finite.
        """
        check_calibrated(self.calibration)
        if self.tiling is not None and len(batch) > 1:
            return [prediction for image in batch for prediction in self.predict([image], reconstruct)]
        size = np.array([self.frame.fit(*image.size) for image in batch]) if self.frame.keep_shape else None  # (B, 2)
        pixels, paths = stack_pixels(batch), [image.path for image in batch]
        thresholds = [self.calibration.of(category) for category in self.category_rule(paths, pixels, size)]
        if self.tiling is None:
            scores = self.scorer(pixels, size, reconstruct, stack_contents(batch))
        else:
            scores = score_by_tiles(self.scorer, self.tiling, batch[0], self.batch_size, reconstruct)
        if not (finite := scores.is_finite).all():
            raise UserError(f"scores of {paths[finite.argmin()] or 'an image'} are not finite: the training diverged")
        return make_predictions(batch, thresholds, scores, size, self.frame, self.calibration)
