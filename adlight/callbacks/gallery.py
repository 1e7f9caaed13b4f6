"""Small pictures of a test's images with their anomaly maps, which the report's page shows."""

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pydantic import NonNegativeInt, PositiveInt

from adlight.detection.gathering import gather_rows
from adlight.detection.module import AnomalyModule, TestedImage
from adlight.detection.pictures import draw_heat_map
from adlight.runs.gallery import GalleryFolder, Pictures
from adlight.settings import PathName, checked
from adlight.types import Batch, Prediction, Scores

QUALITY, EFFORT = 75, 2  # of WebP: 0 to 100; 0 fast to 6 small


@dataclass(frozen=True)
class Candidate:
    """A test image's pictures, and why it may stand in the gallery."""

    index: int  # in the test split
    is_sample: bool  # one of those chosen evenly, before the test
    error: float  # how far on the wrong side of the threshold, as a share of it; 0 where the verdict is right
    pictures: Pictures


class Gallery(pl.Callback):
    """Keep pictures of all test images or, of a large test, of an even sample and of the worst errors, half of each.

    Args:
        folder: where the pictures go.
        images: how many images; 0 for none.
        side: of an image, in pixels at most; smaller images keep their size. Maps have half of it.
    """

    @checked
    def __init__(self, folder: PathName, images: NonNegativeInt = 200, side: PositiveInt = 256) -> None:
        self.folder, self.images, self.side = GalleryFolder(folder), images, side
        self.kept: list[Candidate] = []

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the last test."""
        self.kept = []

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Encode the batch's images that are in the sample, and its errors."""
        assert isinstance(pl_module, AnomalyModule)
        step = self._step(len(pl_module.datamodule.records("test")))
        for i, row in enumerate(pl_module.last_predictions(len(batch["index"])) if self.images else ()):
            is_sample, error = row.index % step == 0, _error(row)
            if is_sample or error > 0:
                self.kept.append(Candidate(row.index, is_sample, error, self._draw(row.prediction, batch, outputs, i)))
        if len(self.kept) > 4 * self.images:
            self.kept = self.select(self.kept)

    def select(self, kept: list[Candidate]) -> list[Candidate]:
        """Select the sample, and the worst errors as far as there is room."""
        ranked = sorted(kept, key=lambda one: (not one.is_sample, -one.error, one.index))
        return ranked[: self.images]

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write, on one process, what all of them kept."""
        assert isinstance(pl_module, AnomalyModule)
        kept = self.select(gather_rows(self.kept))
        if trainer.is_global_zero and kept:
            row_of = {row.index: number for number, row in enumerate(pl_module.predictions)}
            self.folder.write((row_of[one.index], one.pictures) for one in kept)

    def _step(self, images: int) -> int:
        """Take every which image into the sample: all of a small test, else as many as half of the gallery holds."""
        return 1 if images <= self.images else math.ceil(2 * images / max(1, self.images))

    def _draw(self, prediction: Prediction, batch: Batch, scores: Scores, i: int) -> Pictures:
        height, width = batch["size"][i].tolist() if "size" in batch else batch["mask"].shape[1:]  # without padding
        image = batch["image"][i, :, :height, :width].expand(3, -1, -1).permute(1, 2, 0).clamp(0, 1)
        pixels = (image * 255).round().to(torch.uint8).cpu().numpy()  # (H, W, 3)
        anomaly_map = scores["pixel"][i, :height, :width].float().cpu().numpy()  # (H, W)
        true_mask = batch["mask"][i, :height, :width].cpu().numpy()  # (H, W)
        heat_map = draw_heat_map(anomaly_map, prediction.pixel_threshold)
        true = Image.fromarray(true_mask.astype(np.uint8) * 255) if true_mask.any() else None
        half = (self.side + 1) // 2  # maps are smooth
        return Pictures(
            encode(Image.fromarray(pixels), self.side), encode(heat_map, half), encode(true, half) if true else None
        )


def encode(image: Image.Image, side: int) -> bytes:
    """Encode an image, no larger than a square of `side` pixels, as WebP."""
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=EFFORT)
    return buffer.getvalue()


def _error(row: TestedImage) -> float:
    one = row.prediction
    if one.anomalous == bool(row.label):
        return 0.0
    return abs(one.score - one.threshold) / max(abs(one.threshold), 1e-12) + 1e-12
