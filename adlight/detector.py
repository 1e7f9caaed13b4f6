"""A finished run as a plain Python object, without trainer and data set: `Detector.load(run)(["a.png", image])`."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adlight.data.frames import Frame, Size, is_content, scale_box
from adlight.data.images import AnyImage, PreparedImage, prepare_image
from adlight.detection.categories import CategoryRule
from adlight.detection.inference import autocast_dtype, find_device, inference, make_batch
from adlight.detection.module import AnomalyModule, all_finite
from adlight.detection.regions import bounding_boxes, segment
from adlight.metrics.methods import Method
from adlight.runs.config import changes_scores
from adlight.runs.folder import RunFolder
from adlight.runs.restore import build_module, load_weights
from adlight.types import Prediction, UserError


class Detector:
    """Scores images by a trained module; an image's prediction does not depend on the others in its batch.

    An image is compared with the thresholds of its category, see `category`; each prediction says which were used.
    Where a model of several categories cannot know that of an image, nothing is predicted.

    Args:
        module: with its weights and calibrated thresholds.
        image_size: side, or height and width, to which images are resized, as in training.
        channels: 3, or 1 for grey.
        precision: the trainer's, so that the scores are those that the threshold was calibrated on.
        device: where to compute.
        batch_size: images at once.
        resize, keep_shape: as in training, see `Frame`.
        category: of all images; `auto`: by each image's looks; `pooled`: the thresholds of all categories together;
            None: the model's only one, or the nearest folder of each image's path that has a category's name.

    Raises:
        UserError: a batch size below 1, an unknown precision, or an unknown category.
    """

    def __init__(
        self,
        module: AnomalyModule,
        image_size: Size,
        channels: int = 3,
        precision: str = "32-true",
        device: str | torch.device = "cpu",
        batch_size: int = 32,
        resize: Size | None = None,
        keep_shape: bool | None = False,
        category: str | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        self.device, self.autocast = torch.device(device), autocast_dtype(str(precision))
        self.module = module.eval().requires_grad_(False).to(self.device)
        self.frame, self.channels, self.batch_size = Frame(image_size, resize, bool(keep_shape)), channels, batch_size
        self.calibration = deepcopy(module.calibration)
        self.category_rule = CategoryRule(category, self.calibration, module.classifier)

    @classmethod
    def load(
        cls,
        run: str | Path,
        ckpt: str | Path | None = None,
        device: str = "auto",
        overrides: Iterable[str] = (),
        batch_size: int = 32,
        category: str | None = None,
    ) -> "Detector":
        """Load a finished run.

        Args:
            run: the run folder.
            ckpt: `best`, `last` or a path; None for what the run itself tested.
            device: `cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU if there is one.
            overrides: changes of the run's config, such as `model.scorer.reduce=max`. The run's thresholds say nothing
                about the scores of a changed model: set `threshold` and `pixel_threshold` then, for example to those
                that `adlight.evaluate` finds with the same overrides.
            batch_size: images at once.
            category: of all images, see above.

        Raises:
            UserError: no run, no checkpoint, one of another architecture, no such device, or no such category.
        """
        changes, folder = list(overrides), RunFolder(run)
        module, settings = build_module(folder, changes)
        tested = settings.pop("ckpt")
        load_weights(module, folder.checkpoint(str(ckpt or tested)))
        if changes_scores(changes):
            CategoryRule(category, module.calibration, module.classifier)  # is it a category at all?
            module.calibration.reset()
            category = None  # of which nothing is known now
        return cls(module, **settings, device=find_device(device), batch_size=batch_size, category=category)

    @property
    def threshold(self) -> float:
        """An image is anomalous where its score is above it; a value that is set holds for every image.

        Without one it is that of `category`; a UserError says that thresholds differ, where that is not given.
        """
        return self.calibration.of(self.category_rule.of_path(None)).image

    @threshold.setter
    def threshold(self, value: float | str) -> None:
        self.calibration.image = _parse_number("threshold", value)

    @property
    def pixel_threshold(self) -> float:
        """A pixel is part of a defect where its value is above it; a value that is set holds for every image."""
        return self.calibration.of(self.category_rule.of_path(None)).pixel

    @pixel_threshold.setter
    def pixel_threshold(self, value: float | str) -> None:
        self.calibration.pixel = _parse_number("pixel_threshold", value)

    def __call__(self, images: AnyImage | Iterable[AnyImage]) -> list[Prediction]:
        """Predict for each image, in order. The list holds every map and mask: give many images part by part.

        Args:
            images: one or several: paths, PIL images, arrays (H, W) or (H, W, C) of uint8 or uint16, tensors (H, W) or
                (C, H, W) of uint8; or all in one tensor (B, C, H, W) or array (B, H, W, C). They may differ in size.

        Raises:
            UserError: an image that cannot be read, or a threshold that was neither calibrated nor set.
        """
        array = isinstance(images, np.ndarray | Tensor) and images.ndim < 4
        rest = iter([images] if array or isinstance(images, str | Path | Image.Image) else images)
        predictions: list[Prediction] = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes and resizes without the GIL
            while batch := list(islice(rest, self.batch_size)):
                predictions += self.predict(list(pool.map(self.prepare, batch)))
        return predictions

    def prepare(self, image: AnyImage) -> PreparedImage:
        """Decode and resize one image, as in training; a UserError says what is wrong with it."""
        return prepare_image(image, self.channels, self.frame)

    def predict(self, batch: list[PreparedImage]) -> list[Prediction]:
        """Predict for one batch of prepared images.

        Raises:
            UserError: a category is unknown, a threshold neither calibrated nor set, or scores are not finite.
        """
        if not self.calibration.is_fitted:
            raise UserError("no threshold was calibrated for this model: set threshold and pixel_threshold to numbers")
        size = torch.tensor([self.frame.fit(*one.size) for one in batch]) if self.frame.keep_shape else None  # (B, 2)
        with inference(self.device, self.autocast):
            images = make_batch(torch.from_numpy(np.stack([one.pixels for one in batch])).to(self.device), size)
            categories = self.category_rule([one.path for one in batch], images["image"], size)
            scores = self.module.score(images)
        used = [self.calibration.of(category) for category in categories]
        if not (finite := all_finite(scores)).all():
            path = batch[finite.tolist().index(False)].path
            raise UserError(f"scores of {path or 'an image'} are not finite: this checkpoint's training has diverged")
        content = is_content(None if size is None else size.to(self.device), scores["pixel"])  # (B, H, W)
        image_scores = scores["image"].tolist()
        found, areas = segment(scores["pixel"], image_scores, used, content, self.calibration.min_area)
        arrays = found, *(scores[key].float().cpu().numpy() for key in ("pixel", "reconstruction"))
        restored = [[self.frame.restore(array[i], *one.size) for array in arrays] for i, one in enumerate(batch)]
        rows = zip(batch, used, image_scores, areas, restored, strict=True)
        return [
            Prediction(
                *(score, own.image, own.pixel, own.source, share),
                boxes=[scale_box(box, mask.shape, one.size) for box in bounding_boxes(mask)],
                mask=np.asarray(Image.fromarray(mask).resize(one.size, Image.Resampling.NEAREST)),
                anomaly_map=anomaly_map,
                reconstruction=reconstruction,
            )
            for one, own, score, share, (mask, anomaly_map, reconstruction) in rows
        ]


def _parse_number(name: str, value: float | str) -> Method:
    try:
        method = Method.parse(value)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    if not method.is_number:
        setting = {"threshold": "calibration.image", "pixel_threshold": "calibration.pixel"}[name]
        raise UserError(
            f"{name}={value} needs normal images: python -m adlight.evaluate run=<run> {setting}={value} gives a number"
        )
    return method
