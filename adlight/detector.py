"""A finished run as a plain Python object, without trainer and data set: `Detector.load(run)(["a.png", image])`."""

import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adlight.data.images import READ_ERRORS, AnyImage, pad_center, scale_box, to_input_array, to_pil
from adlight.detection.maps import bounding_boxes
from adlight.detection.module import AnomalyModule, all_finite
from adlight.metrics.thresholds import Method, Threshold
from adlight.runs.folder import RunFolder
from adlight.runs.restore import build_module, load_weights
from adlight.types import Batch, Prediction, Scores, UserError, unknown_name

AUTOCAST = {"32": None, "16": torch.float16, "bf16": torch.bfloat16}  # None: no autocast
AUTOCAST |= {"32-true": None, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


@dataclass(frozen=True)
class PreparedImage:
    """An image on its way to the model."""

    pixels: np.ndarray  # (C, S, S) uint8
    size: tuple[int, int]  # its own width and height
    name: str  # its path, or its type
    category: str | None  # None where it is not known


class Detector:
    """Scores images by a trained module; an image's prediction does not depend on the others in its batch.

    Thresholds belong to categories. An image's category is `category` where that is given, the model's only one, or
    the nearest folder of the image's path that has a category's name; all others are compared with the thresholds of
    all categories together. Each prediction says which were used.

    Args:
        module: with its weights and calibrated thresholds.
        image_size: the side to which images are resized, as in training.
        channels: 3, or 1 for grey.
        precision: the trainer's, so that the scores are those that the threshold was calibrated on.
        device: where to compute.
        batch_size: images at once.
        resize: S, where only a centre crop of `image_size` is looked at; None: it is `image_size`.
        category: of all images; None = found out for each image as above.

    Attributes:
        override: thresholds that hold for every image, by `image` and `pixel`, as set by the properties.

    Raises:
        UserError: a batch size below 1, an unknown precision, or a category that has no thresholds.
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
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        if str(precision) not in AUTOCAST:
            raise UserError(f"precision={precision}: a detector computes in {', '.join(list(AUTOCAST)[3:])}")
        self.device, self.autocast = torch.device(device), AUTOCAST[str(precision)]
        self.module = module.eval().requires_grad_(False).to(self.device)
        self.image_size, self.channels, self.batch_size = image_size, channels, batch_size
        self.side = resize or image_size
        self.override: dict[str, float] = {}
        self.categories = list(module.calibration.by_category)
        if category is not None and self.categories and category not in self.categories:
            raise UserError(unknown_name("category", category, self.categories))
        self.category = category or (self.categories[0] if len(self.categories) == 1 else None)

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
        changes, folder = list(overrides), RunFolder(run)
        module, settings = build_module(folder, changes)
        tested = settings.pop("ckpt")
        load_weights(module, folder.checkpoint(str(ckpt or tested)))
        outdating = ("model", "dataset", "calibration.image", "calibration.pixel")
        if any(word.lstrip("+").startswith(outdating) for word in changes):
            module.calibration.reset()
        return cls(module, **settings, device=_find_device(device), batch_size=batch_size, category=category)

    @property
    def threshold(self) -> float:
        """An image is anomalous where its score is above it; a value that is set holds for every image.

        Without one it is that of `category`; where that is None, of all categories together.
        """
        return self.effective(self.category).image

    @threshold.setter
    def threshold(self, value: float | str) -> None:
        self.override["image"] = _parse_number("threshold", value)

    @property
    def pixel_threshold(self) -> float:
        """A pixel is part of a defect where its value is above it; a value that is set holds for every image."""
        return self.effective(self.category).pixel

    @pixel_threshold.setter
    def pixel_threshold(self, value: float | str) -> None:
        self.override["pixel"] = _parse_number("pixel_threshold", value)

    def effective(self, category: str | None) -> Threshold:
        """Look up the thresholds for images of a category; None = not known."""
        found = self.module.calibration.of(category)
        source = "given" if len(self.override) == 2 else found.source
        image, pixel = self.override.get("image", found.image), self.override.get("pixel", found.pixel)
        return Threshold(image, pixel, found.num_normals, source)

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
        """Decode and resize one image, as in training.

        Raises:
            UserError: it cannot be read; the text names the file, or says what is wrong with the array.
        """
        name = str(image) if isinstance(image, str | Path) else f"({type(image).__name__})"
        try:
            picture = to_pil(image)
            pixels = to_input_array(picture, self.channels, self.image_size, self.side).copy()
        except (*READ_ERRORS, UserError) as error:
            named = isinstance(error, UserError) and name in str(error)
            raise error if named else UserError(f"cannot read image {name}: {error}") from error
        category = self.category
        if category is None and isinstance(image, str | Path):
            folders = Path(image).absolute().parent.parts[::-1]  # the nearest first
            category = next((folder for folder in folders if folder in self.categories), None)
        return PreparedImage(pixels, picture.size, name, category)

    def predict(self, batch: list[PreparedImage]) -> list[Prediction]:
        """Predict for one batch of prepared images.

        Raises:
            UserError: a threshold was neither calibrated nor set, or scores are not finite.
        """
        used = [self.effective(one.category) for one in batch]
        if any(math.isnan(one.image) or math.isnan(one.pixel) for one in used):
            raise UserError("no threshold was calibrated for this model: set threshold and pixel_threshold to numbers")
        scores = self._score(torch.from_numpy(np.stack([one.pixels for one in batch])).to(self.device))
        if not (finite := all_finite(scores)).all():
            name = batch[finite.tolist().index(False)].name
            raise UserError(f"the scores of {name} are not finite: this checkpoint's training has diverged")
        level = scores["pixel"].new_tensor([one.pixel for one in used])[:, None, None]
        found = (scores["pixel"] > level).cpu().numpy()
        area = found.mean((1, 2))  # (B,)
        arrays = found, *(scores[key].float().cpu().numpy() for key in ("pixel", "reconstruction"))
        found, maps, reconstructions = (pad_center(one, self.side) for one in arrays)  # (B, [C,] S, S)
        return [
            Prediction(
                score=score,
                threshold=used[i].image,
                pixel_threshold=used[i].pixel,
                threshold_source=used[i].source,
                area=float(area[i]),
                boxes=[scale_box(box, found[i].shape, batch[i].size) for box in bounding_boxes(found[i])],
                mask=np.asarray(Image.fromarray(found[i]).resize(batch[i].size, Image.Resampling.NEAREST)),
                anomaly_map=maps[i],
                reconstruction=reconstructions[i],
            )
            for i, score in enumerate(scores["image"].tolist())
        ]

    def _score(self, image: Tensor) -> Scores:  # (B, C, S, S) uint8
        zeros = image.new_zeros(len(image), dtype=torch.long)
        batch = Batch(
            image=image.float() / 255,
            label=zeros,
            mask=torch.zeros_like(image[:, 0], dtype=torch.bool),
            index=zeros,
            category=zeros,
        )
        autocast = torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)
        with torch.inference_mode(), autocast, _training_matmul_precision():
            return self.module.score(batch)


@contextmanager
def _training_matmul_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # as `train.build` sets it: thresholds were calibrated with TF32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _parse_number(name: str, value: float | str) -> float:
    try:
        method = Method.parse(value)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    if method.name != "number":
        setting = f"calibration.{'pixel' if name.startswith('pixel') else 'image'}"
        raise UserError(
            f"{name}={value} needs normal images, a number does not: python -m adlight.evaluate run=<run folder> "
            f"{setting}={value} writes the number into its metrics.json"
        )
    return method.value


def _find_device(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={device} cannot be used: {str(error).splitlines()[0]}") from error
