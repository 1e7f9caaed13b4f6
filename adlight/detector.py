"""A finished run as a plain Python object, without trainer and data set: `Detector.load(run)(["a.png", image])`."""

import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adlight.data.images import READ_ERRORS, AnyImage, pad_center, scale_box, to_input_array, to_pil
from adlight.detection.maps import bounding_boxes
from adlight.detection.module import AnomalyModule, all_finite
from adlight.metrics.image import parse_rule
from adlight.metrics.thresholds import Threshold, Thresholds
from adlight.runs.folder import RunFolder
from adlight.runs.restore import build_module, load_weights
from adlight.types import Batch, Prediction, UserError, unknown_name

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Ready(NamedTuple):
    """An image on its way to the model."""

    pixels: np.ndarray  # (C, S, S) uint8
    size: tuple[int, int]  # its own width and height
    name: str  # its path, or its type
    category: str | None  # None where it is not known


class Detector:
    """Scores images by a trained module; an image's answer does not depend on the others in its batch.

    Thresholds belong to categories. An image's category is `category` where that is given, the model's only one, or
    the nearest folder of the image's path that has a category's name; all others are compared with the thresholds of
    all categories together. Each answer says which were used.

    Args:
        module: with its weights and calibrated thresholds.
        image_size: the side to which images are resized, as in training.
        channels: 3, or 1 for grey.
        precision: the trainer's, so that the scores are those that the threshold was calibrated on.
        device: where to compute.
        batch_size: images at once.
        resize: S, where only a centre crop of `image_size` is looked at; None: it is `image_size`.
        category: of all images; None = found out for each image as above.

    Raises:
        UserError: a batch size below 1, or a category that has no thresholds.
    """

    def __init__(
        self,
        module: AnomalyModule,
        image_size: int,
        channels: int = 3,
        precision: str = "32-true",
        device: str | torch.device = "cpu",
        batch_size: int = 32,
        resize: int | None = None,
        category: str | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: must be at least 1")
        self.device = torch.device(device)
        self.module = module.eval().requires_grad_(False).to(self.device)
        self.image_size, self.channels, self.batch_size = image_size, channels, batch_size
        self.side = resize or image_size
        self.autocast = AUTOCAST.get(precision)
        self.calibrated = module.thresholds
        self.given: dict[str, Any] = {}
        known = list(self.calibrated.categories)
        if category is not None and known and category not in known:
            raise UserError(unknown_name("category", category, known))
        self.category = category or (known[0] if len(known) == 1 else None)

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
            ckpt: `best`, `last` or a path; None for what the run itself tested, `best` unless it was told otherwise.
            device: `cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU if there is one.
            overrides: changes of the run's config, such as `model.scorer.reduce=max`. The run's thresholds say nothing
                about the scores of a changed model: set `threshold` and `pixel_threshold` then, for example to those
                that `adlight.evaluate` finds with the same overrides.
            batch_size: images at once.
            category: of all images, see above.

        Raises:
            UserError: no run, no checkpoint, one of another architecture, no such device, or no such category.
        """
        changes = list(overrides)
        folder = RunFolder(run)
        module, settings = build_module(folder, changes)
        tested = settings.pop("ckpt")
        load_weights(module, folder.checkpoint(str(ckpt or tested)))
        if any(word.lstrip("+").startswith(("model", "dataset")) for word in changes):
            module.calibrated = Thresholds()
        detector = cls(module, **settings, device=usable(device), batch_size=batch_size, category=category)
        for word in changes:
            name, _, value = word.lstrip("+").partition("=")
            if name in ("threshold", "pixel_threshold"):
                setattr(detector, name, value)
        return detector

    @property
    def threshold(self) -> float:
        """An image is anomalous where its score is above it; a value that is set holds for every image.

        Without one it is that of `category`; where that is None, of all categories together.
        """
        return self.used(self.category).image

    @threshold.setter
    def threshold(self, value: float | str) -> None:
        self.given["image"] = number("threshold", value)

    @property
    def pixel_threshold(self) -> float:
        """A pixel is part of a defect where its value is above it; a value that is set holds for every image."""
        return self.used(self.category).pixel

    @pixel_threshold.setter
    def pixel_threshold(self, value: float | str) -> None:
        self.given["pixel"] = number("pixel_threshold", value)

    def used(self, category: str | None) -> Threshold:
        """The thresholds for images of a category; None = not known."""
        found = self.calibrated.of(category)._replace(**self.given)
        return found._replace(source="given") if len(self.given) == 2 else found

    def category_of(self, image: AnyImage) -> str | None:
        """The category whose thresholds an image is compared with, None where it cannot be known."""
        if self.category is not None or not isinstance(image, str | Path):
            return self.category
        folders = Path(image).absolute().parent.parts[::-1]  # the nearest first
        return next((name for name in folders if name in self.calibrated.categories), None)

    def __call__(self, images: AnyImage | Iterable[AnyImage]) -> list[Prediction]:
        """Answer for each image, in order. The list holds every map and mask: give many images part by part.

        Args:
            images: one or several: paths, PIL images, arrays (H, W) or (H, W, C) of uint8 or uint16, tensors (C, H, W)
                of uint8; or all in one tensor (B, C, H, W) or array (B, H, W, C). They may differ in size.

        Raises:
            UserError: an image that cannot be read, or a threshold that was neither calibrated nor set.
        """
        if isinstance(images, str | Path | Image.Image) or (
            isinstance(images, np.ndarray | Tensor) and images.ndim < 4
        ):
            images = [images]
        rest = iter(images)
        answers: list[Prediction] = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes and resizes without the GIL
            while batch := list(islice(rest, self.batch_size)):
                answers += self.answer(list(pool.map(self.read, batch)))
        return answers

    def read(self, image: AnyImage) -> Ready:
        """Decode and resize one image, as in training.

        Raises:
            UserError: it cannot be read; the text names the file, or says what is wrong with the array.
        """
        name = image if isinstance(image, str | Path) else f"({type(image).__name__})"
        try:
            picture = to_pil(image)
            pixels = to_input_array(picture, self.channels, self.image_size, self.side).copy()
            return Ready(pixels, picture.size, str(name), self.category_of(image))
        except READ_ERRORS as error:
            raise UserError(f"cannot read image {name}: {error}") from error
        except UserError as error:
            raise error if str(name) in str(error) else UserError(f"cannot read image {name}: {error}") from error

    def answer(self, batch: list[Ready]) -> list[Prediction]:
        """Answer for one batch of images that were read.

        Raises:
            UserError: a threshold was neither calibrated nor set, or scores are not finite.
        """
        used = [self.used(one.category) for one in batch]
        if any(math.isnan(one.image) or math.isnan(one.pixel) for one in used):
            raise UserError("no threshold was calibrated for this model: set threshold and pixel_threshold to numbers")
        image = torch.from_numpy(np.stack([one.pixels for one in batch])).to(self.device)
        nothing = torch.zeros(len(batch), dtype=torch.long, device=self.device)
        autocast = torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)
        with torch.inference_mode(), autocast:
            mask = torch.zeros_like(image[:, 0], dtype=torch.bool)
            scores = self.module.score(
                Batch(image=image.float() / 255, label=nothing, mask=mask, index=nothing, category=nothing)
            )
            level = scores["pixel"].new_tensor([one.pixel for one in used])[:, None, None]
            found = (scores["pixel"] > level).cpu().numpy()
            area = found.mean((1, 2))  # (B,)
            found = pad_center(found, self.side)  # (B, S, S)
        if not (finite := all_finite(scores)).all():
            name = batch[finite.tolist().index(False)].name
            raise UserError(f"the scores of {name} are not finite: this checkpoint's training has diverged")
        values = scores["image"].tolist()
        maps, pictures = (
            pad_center(scores[key].float().cpu().numpy(), self.side) for key in ("pixel", "reconstruction")
        )
        return [
            Prediction(
                score=values[i],
                threshold=used[i].image,
                area=float(area[i]),
                boxes=[scale_box(box, found[i].shape, one.size) for box in bounding_boxes(found[i])],
                mask=np.asarray(Image.fromarray(found[i]).resize(one.size, Image.Resampling.NEAREST)),
                anomaly_map=maps[i],
                reconstruction=pictures[i],
                pixel_threshold=used[i].pixel,
                threshold_source=used[i].source,
            )
            for i, one in enumerate(batch)
        ]


def number(name: str, value: float | str) -> float:
    """A threshold that is a number.

    Raises:
        UserError: it is a rule, which would need normal images, or nothing known.
    """
    try:
        kind, parsed = parse_rule(value)
    except ValueError as error:
        raise UserError(str(error)) from error
    if kind != "number":
        raise UserError(
            f"{name}={value} needs normal images, a number does not: python -m adlight.evaluate run=<run folder> "
            f"{name}={value} writes the number into its metrics.json"
        )
    return parsed


def usable(device: str) -> torch.device:
    """The device of a name; UserError if there is no such device."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={device} cannot be used: {str(error).splitlines()[0]}") from error
