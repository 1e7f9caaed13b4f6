"""A finished run as a plain Python object, without trainer and data set: `Detector.load(run)(["a.png", image])`."""

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
from adlight.data.images import AnyImage, PreparedImage, prepare_image
from adlight.data.roi import check_selection, make_selection
from adlight.data.tiling import Tiling
from adlight.detection.categories import CategoryRule
from adlight.detection.predictions import make_predictions
from adlight.detection.tiles import score_images
from adlight.metrics.methods import parse_number
from adlight.runs.exported import load_exported
from adlight.runs.graphs import check_arguments, is_exported
from adlight.types import Prediction, Unreadable, UserError

if TYPE_CHECKING:  # torch takes seconds, and an exported graph needs none
    import torch

    from adlight.detection.detector import AnomalyDetector
    from adlight.detection.session import GraphDetector


class Detector:
    """Scores images by a trained module; an image's prediction does not depend on the others in its batch.

    Args:
        module: with its weights and calibrated thresholds.
        image_size: side, or height and width, to which images are resized, as in training.
        channels: 3, or 1 for grey.
        precision: the trainer's, so that the scores are those that the threshold was calibrated on.
        device: where to compute.
        batch_size: images, or tiles, at once.
        resize, keep_shape: as in training, see `Frame`.
        category: of all images; `auto`: by each image's looks; `pooled`: the thresholds of all categories together;
            None: the model's only one, or the nearest folder of each image's path that has a category's name.
        roi: what of the images counts, see `RegionOfInterest`; None: all.
        tiling: cuts images into tiles of the size that the module takes; None: whole images.

    Raises:
        UserError: a batch size below 1, an unknown precision or category, or a roi or tiling that the module refuses.
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
        """Load a finished run, or what `adlight.export` made of it.

        Args:
            run: the run folder, or the graph, `detector.onnx`, which needs neither PyTorch nor the run.
            ckpt: `best`, `last` or a path; None for what the run itself tested.
            device: `cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU if there is one.
            overrides: changes of its config (`model.scorer.reduce=max`), of which its thresholds say nothing.
            batch_size: images, or tiles, at once.
            category: of all images, see above.
            inputs: `roi`, `tile` or `overlap` in place of the run's; of other tiles its thresholds say nothing.

        Raises:
            UserError: no run, no checkpoint, one of another architecture, no such device, or no such category.
        """
        changes = check_arguments(run, overrides, inputs)
        if is_exported(run):
            for name, value in {"ckpt": ckpt, "overrides": changes or None, **inputs}.items():
                if value is not None:
                    raise UserError(f"{name}: {run} is a graph, of which only category and thresholds can change")
            graph, frame = load_exported(run, device)
            return cls(graph, **frame, batch_size=batch_size, category=category)
        from adlight.detection.inference import find_device
        from adlight.runs.restore import restore

        module, settings, is_calibrated = restore(run, ckpt, changes, inputs)
        if not is_calibrated:
            CategoryRule(category, module.calibration, module.classifier)  # is it a category at all?
            module.calibration.reset()
            category = None  # of which nothing is known now
        return cls(module, **settings, device=find_device(device), batch_size=batch_size, category=category)

    def with_category(self, category: str | None) -> "Detector":
        """Give a detector that takes another category's thresholds and shares all else; a UserError: none such."""
        other = copy(self)
        other.category_rule = CategoryRule(category, self.calibration, self.category_rule.classifier)
        other.select = make_selection(self.roi, self.channels, self.frame, other.category_rule.guess)
        return other

    @property
    def threshold(self) -> float:
        """An image is anomalous above it: that of `category`, or of none where they differ; one set holds for all."""
        return self.calibration.of(self.category_rule.of_path(None)).image

    @threshold.setter
    def threshold(self, value: float | str) -> None:
        self.calibration.image = parse_number("threshold", value)

    @property
    def pixel_threshold(self) -> float:
        """A pixel is part of a defect where its value is above it; a value that is set holds for every image."""
        return self.calibration.of(self.category_rule.of_path(None)).pixel

    @pixel_threshold.setter
    def pixel_threshold(self, value: float | str) -> None:
        self.calibration.pixel = parse_number("pixel_threshold", value)

    def __call__(
        self, images: AnyImage | Iterable[AnyImage], reconstruct: bool = True, range: tuple[float, float] | None = None
    ) -> list[Prediction | Unreadable]:
        """Predict for each image, in order. The list holds every map and mask: give many images part by part.

        Args:
            images: one or several: paths, PIL images, arrays (H, W) or (H, W, C), tensors (H, W) or (C, H, W), of uint8
                or uint16; or all in one tensor (B, C, H, W) or array (B, H, W, C). They may differ in size.
            reconstruct: False leaves out reconstructions, which take models in feature space a fifth of the time.
            range: the values of black and white in images of floats, such as (0, 1).

        Returns:
            Predictions; among several images, an `Unreadable` in place of a file that cannot be read.

        Raises:
            UserError: an array that is no image, a single file that cannot be read, or no threshold.
        """
        alone = isinstance(images, str | bytes | Path | Image.Image) or not isinstance(images, Iterable)
        single = alone or getattr(images, "ndim", 4) < 4  # arrays and tensors have it
        rest, answers = iter([images] if single else images), list[Prediction | Unreadable]()  # type: ignore[arg-type]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes and resizes without the GIL
            while batch := list(islice(rest, self.images_at_once)):
                found = list(pool.map(self.prepare, batch, repeat(range)))
                readable = [one for one in found if isinstance(one, PreparedImage)]
                predicted = iter(self.predict(readable, reconstruct) if readable else ())
                answers += [one if isinstance(one, Unreadable) else next(predicted) for one in found]
        if single and isinstance(answers[0], Unreadable):
            raise UserError(answers[0].error)
        return answers

    def prepare(self, image: AnyImage, range: tuple[float, float] | None = None) -> PreparedImage | Unreadable:
        """Decode and resize an image, as in training; a UserError says what is wrong with one that is no file."""
        try:
            return prepare_image(image, self.channels, self.frame, range, self.select)
        except UserError as error:
            if not isinstance(image, str | Path):
                raise
            return Unreadable(str(image), str(error))

    def predict(self, batch: list[PreparedImage], reconstruct: bool = True) -> list[Prediction]:
        """Predict for one batch of prepared images, see `__call__`.

        Raises:
            UserError: a category is unknown, a threshold neither calibrated nor set, or scores are not finite.
        """
        if not self.calibration.is_fitted:
            raise UserError("no threshold was calibrated for this model: set threshold and pixel_threshold to numbers")
        if self.tiling is not None and len(batch) > 1:
            return [one for image in batch for one in self.predict([image], reconstruct)]
        size = np.array([self.frame.fit(*one.size) for one in batch]) if self.frame.keep_shape else None  # (B, 2)
        pixels, paths = np.stack([one.pixels for one in batch]), [one.path for one in batch]
        used = [self.calibration.of(category) for category in self.category_rule(paths, pixels, size)]
        scores = score_images(self.scorer, self.tiling, batch, size, self.batch_size, reconstruct)
        if not (finite := scores.is_finite).all():
            raise UserError(f"scores of {paths[finite.argmin()] or 'an image'} are not finite: the training diverged")
        return make_predictions(batch, used, scores, size, self.frame, self.calibration)
