"""Small pictures of test images and their anomaly maps, for the image viewer of the report's page."""

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
from PIL import Image
from pydantic import NonNegativeInt, PositiveInt

from adlight.callbacks.panels import copy_arrays
from adlight.detection.gathering import gather_rows
from adlight.detection.module import AnomalyModule, TestedImage
from adlight.detection.pictures import draw_heat_map
from adlight.runs.subfolders import GalleryFolder, Pictures
from adlight.settings import PathName, checked
from adlight.types import Batch, Prediction, Scores

QUALITY, EFFORT = 75, 2  # WebP's quality, 0 to 100, and effort, 0 (fast) to 6 (small files)


@dataclass(frozen=True)
class Candidate:
    """A test image that may enter the gallery."""

    index: int  # in the test split
    is_sample: bool  # whether it belongs to the even sample
    error: float  # distance between score and threshold, relative to the threshold; 0 if the decision is right
    pictures: Pictures


class Gallery(pl.Callback):
    """Keep pictures of all test images or, if there are too many, of an even sample and of the worst errors.

    Args:
        folder: folder for the pictures.
        images: largest number of images; 0 disables the gallery.
        side: longer side of an image in pixels, half as long for maps; smaller images keep their size.
    """

    @checked
    def __init__(self, folder: PathName, images: NonNegativeInt = 200, side: PositiveInt = 256) -> None:
        self.folder, self.images, self.side = GalleryFolder(folder), images, side
        self.kept: list[Candidate] = []

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Clear the images of the previous test."""
        self.kept = []

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Encode the images of the batch that are in the sample or misclassified."""
        assert isinstance(pl_module, AnomalyModule)
        step = self._sample_step(len(pl_module.datamodule.records("test")))
        for i, row in enumerate(pl_module.last_predictions(len(batch["index"])) if self.images else ()):
            is_sample, error = row.index % step == 0, _error(row)
            if is_sample or error > 0:
                self.kept.append(Candidate(row.index, is_sample, error, self._draw(row.prediction, batch, outputs, i)))
        if len(self.kept) > 4 * self.images:
            self.kept = self.select(self.kept)

    def select(self, kept: list[Candidate]) -> list[Candidate]:
        """Select the sample first, then the worst errors, up to `images`."""
        ranked = sorted(kept, key=lambda candidate: (not candidate.is_sample, -candidate.error, candidate.index))
        return ranked[: self.images]

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather the pictures of all processes and write them in the first process."""
        assert isinstance(pl_module, AnomalyModule)
        kept = self.select(gather_rows(self.kept))
        if trainer.is_global_zero and kept:
            row_of = {row.index: number for number, row in enumerate(pl_module.predictions)}
            self.folder.write((row_of[candidate.index], candidate.pictures) for candidate in kept)

    def _sample_step(self, images: int) -> int:
        # every n-th image is sampled: all of a small test, otherwise enough to fill half the gallery
        return 1 if images <= self.images else math.ceil(2 * images / max(1, self.images))

    def _draw(self, prediction: Prediction, batch: Batch, scores: Scores, i: int) -> Pictures:
        image, anomaly_map, true_mask = copy_arrays(batch, scores, i)
        heat_map = draw_heat_map(anomaly_map, prediction.pixel_threshold)
        half = (self.side + 1) // 2  # maps are smooth
        mask = encode(Image.fromarray(true_mask.astype(np.uint8) * 255), half) if true_mask.any() else None
        return Pictures(encode(Image.fromarray(image), self.side), encode(heat_map, half), mask)


def encode(image: Image.Image, side: int) -> bytes:
    """Encode an image as WebP, after shrinking it to fit into a square of `side` pixels."""
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=EFFORT)
    return buffer.getvalue()


def _error(row: TestedImage) -> float:
    score, threshold = row.prediction.score, row.prediction.threshold
    if row.prediction.anomalous == bool(row.label):
        return 0.0
    return abs(score - threshold) / max(abs(threshold), 1e-12) + 1e-12
