"""Panels of a test: the clearest cases and the mistakes of each category, with one colour scale per category."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from PIL import Image
from pydantic import PositiveInt

from adlight.data.frames import content_of, size_of
from adlight.detection.gathering import TestedImage, gather_rows
from adlight.detection.module import AnomalyModule
from adlight.detection.pictures import draw_panel, stack_panels
from adlight.detection.regions import segment
from adlight.metrics.thresholds import Calibration
from adlight.settings import PathName, checked
from adlight.types import Batch, Prediction, Scores, reconstruction_of


@dataclass(frozen=True)
class Example:
    """A test image with its prediction, on the CPU."""

    index: int  # in the test split
    prediction: Prediction  # including its arrays
    image: np.ndarray  # (H, W, 3) uint8
    true_mask: np.ndarray  # (H, W) bool


class Panels(pl.Callback):
    """Write `<category>.png`: a row per image with input, reconstruction, error, true mask and decision.

    The images are those with the highest and the lowest scores of each label: the clearest cases and the mistakes. Only
    these are kept in memory during a test.

    Args:
        folder: folder for the pictures.
        cases: number of images with the highest scores, and with the lowest, to show for each label.

    Attributes:
        shown: the examples in each category's picture; set after a test, in the first process.
    """

    @checked
    def __init__(self, folder: PathName, cases: PositiveInt = 3) -> None:
        self.folder, self.cases = Path(folder), cases
        self.kept: dict[tuple[int, int], list[Example]] = {}
        self.shown: dict[str, list[Example]] = {}

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Clear the examples of the previous test."""
        self.kept, self.shown = {}, {}

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Keep the images of the batch whose scores are among the highest or lowest of their category and label."""
        assert isinstance(pl_module, AnomalyModule)
        for i, row in enumerate(pl_module.last_predictions(len(batch["index"]))):
            kept = self.kept.setdefault((row.category, row.label), [])
            scores = [example.prediction.score for example in kept]  # highest first
            score = row.prediction.score
            if len(kept) < 2 * self.cases or score > scores[self.cases - 1] or score < scores[self.cases]:
                category = pl_module.datamodule.categories[row.category]
                example = copy_example(row, batch, outputs, i, category, pl_module.calibration)
                kept[:] = self.select_extremes([*kept, example])

    def select_extremes(self, examples: list[Example]) -> list[Example]:
        """Select the highest and the lowest scores, highest first; ties keep the order of the test split."""
        examples = sorted(examples, key=lambda example: (-example.prediction.score, example.index))
        return examples if len(examples) <= 2 * self.cases else examples[: self.cases] + examples[-self.cases :]

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather the examples of all processes and draw them in the first process."""
        assert isinstance(pl_module, AnomalyModule)
        examples = gather_rows([example for kept in self.kept.values() for example in kept])
        if not trainer.is_global_zero:
            return
        records = pl_module.datamodule.records("test")
        for category in pl_module.datamodule.categories:
            mine = [example for example in examples if records[example.index].category == category]
            by_label = ([example for example in mine if records[example.index].label == label] for label in (1, 0))
            if shown := [example for found in by_label for example in self.select_extremes(found)]:
                self.shown[category] = shown
                rows = [
                    draw_panel(Image.fromarray(e.image), e.prediction, records[e.index], e.true_mask) for e in shown
                ]
                self.folder.mkdir(parents=True, exist_ok=True)
                stack_panels(rows, category).save(self.path(category))

    def path(self, category: str) -> Path:
        """Return the path of a category's picture."""
        return self.folder / f"{category}.png"


def copy_example(
    row: TestedImage, batch: Batch, scores: Scores, i: int, category: str, calibration: Calibration
) -> Example:
    """Copy image `i` of a batch with its prediction to the CPU, and segment its anomaly map."""
    image, anomaly_map, true_mask = copy_arrays(batch, scores, i)
    height, width = anomaly_map.shape
    content = content_of(batch)[i : i + 1, :height, :width].cpu().numpy()  # (1, H, W)
    thresholds = [calibration.of(category)]
    masks, _ = segment(anomaly_map[None], [row.prediction.score], thresholds, content, calibration)
    reconstruction = reconstruction_of(scores, slice(i, i + 1))[0, :, :height, :width].float().cpu().numpy()
    arrays = {"mask": masks[0], "anomaly_map": anomaly_map, "reconstruction": reconstruction}
    return Example(row.index, replace(row.prediction, **arrays), image, true_mask)


def copy_arrays(batch: Batch, scores: Scores, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Copy image (H, W, 3) uint8, map (H, W) and true mask (H, W) bool of a batch's image `i` to the CPU, unpadded."""
    height, width = size_of(batch, i)
    image = batch["image"][i, :, :height, :width].expand(3, -1, -1).permute(1, 2, 0).clamp(0, 1)
    anomaly_map = scores["pixel"][i, :height, :width].float().cpu().numpy()
    true_mask = batch["mask"][i, :height, :width].cpu().numpy().copy()
    return (image * 255).round().byte().cpu().numpy(), anomaly_map, true_mask
