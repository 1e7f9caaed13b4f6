"""What every detector does after training: score, calibrate thresholds on validation normals, test."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from adlight.data.datamodule import AnomalyDataModule
from adlight.data.frames import is_content
from adlight.detection.detector import AnomalyDetector
from adlight.detection.gathering import ScoredImage, TestedImage, gather_rows
from adlight.detection.optimization import diverged
from adlight.detection.regions import bounding_boxes, segment
from adlight.metrics.pixel import PixelHistogram
from adlight.metrics.results import Results, mean_auroc, refuse_non_finite, summarize
from adlight.types import Batch, Prediction, Scores, UserError


class Pretrained(NamedTuple):
    """The part of a module whose weights come from a finished run."""

    run: str  # folder
    prefix: str  # of the tensors' names


class AnomalyModule(AnomalyDetector, pl.LightningModule):
    """Base of the trainings of detectors. A subclass writes `training_step`, `configure_optimizers` and `score`.

    Validation calibrates: thresholds are set from the scores of held-out normal images and of their pixels; a
    checkpoint carries them with the categories' names. `val/auroc` compares those normals with copies that have
    synthetic defects, as a mean over categories: it is what checkpoints and searches look at. The test split steers
    nothing.

    Attributes:
        validation_scores: of this process's images, during a validation.
        predictions: of the test images; after a test those of all processes, in the order of the split.
        pixels: the pixel scores of validation normals or test images, one group per category.
        results: the metrics of the last test.
    """

    takes_padding = True  # images that keep their shape: `Batch["size"]`

    def __init__(self) -> None:
        super().__init__()
        self.validation_scores: list[ScoredImage] = []
        self.predictions: list[TestedImage] = []
        self.pixels = PixelHistogram()
        self.results: Results | None = None

    def cross_fit(self, folds: int) -> Iterator[tuple[Batch, Scores]]:
        """Score training images, fold by fold, by models fitted to the others; none where fitting takes epochs.

        Yields:
            Batches of those that are this process's, and their scores.

        Raises:
            UserError: the other folds are too few images to fit to.
        """
        return iter(())

    def describe(self) -> list[str]:
        """Say what was trained, in lines for the result table."""
        return []

    def metadata(self) -> dict[str, Any]:
        """Give what belongs into a result's file besides the metrics, by name."""
        found = self.classifier
        accuracy = {"accuracy": found.accuracy, "num_normals": found.num_normals}
        return {"category_auto": accuracy} if found.names else {}

    @property
    def pretraining(self) -> pl.LightningModule | None:
        """The stage that is trained before this module, if there is one."""
        return None

    @property
    def pretrained(self) -> "Pretrained | None":
        """What comes from another run instead."""
        return None

    def num_epochs(self, default: int, batches_per_epoch: Callable[[], int]) -> int:
        """Say how long the training is, where that does not follow from the trainer's setting."""
        return default

    @property
    def datamodule(self) -> AnomalyDataModule:
        """The trainer's data module."""
        return cast(Any, self.trainer).datamodule

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self.validation_scores = []
        self.pixels = PixelHistogram(len(self.datamodule.categories)).to(self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> Scores:
        """Collect scores of normals and pseudo-anomalies, and the pixels of normals."""
        scores = self.score(batch)
        self._collect(batch, scores)
        return scores

    def _collect(self, batch: Batch, scores: Scores) -> None:
        if not all_finite(scores).all():  # before the pixels, which would be refused without advice
            raise UserError(f"scores of validation images are not finite in epoch {self.current_epoch}: {diverged()}")
        content = is_content(batch.get("size"), scores["pixel"])  # (B, H, W)
        peak = scores["pixel"].float().masked_fill(~content, -torch.inf).amax((1, 2))  # (B,)
        self.validation_scores += map(ScoredImage, *_truth(batch), scores["image"].tolist(), peak.tolist())
        normal = batch["label"] == 0
        pixel, counted = scores["pixel"][normal], content[normal]
        if len(pixel):
            self.pixels.update(pixel, torch.zeros_like(counted), batch["category"][normal], counted)

    def _collect_cross_fitted(self) -> None:
        folds = self.calibration.folds
        for batch, scores in self.cross_fit(folds) if folds > 1 else ():
            self._collect(Batch(**{**batch, "index": -1 - batch["index"]}), scores)  # no held-out image's

    def on_validation_epoch_end(self) -> None:
        """Calibrate the thresholds and log `val/auroc`, from the scores of all processes: nothing is left to sync."""
        self._collect_cross_fitted()
        rows = gather_rows(self.validation_scores)
        score, peak = torch.tensor([(row.score, row.peak) for row in rows], dtype=torch.float64).view(-1, 2).T
        label, category, index = torch.tensor([[row.label, row.category, row.index] for row in rows]).view(-1, 3).T
        normal, names = label == 0, self.datamodule.categories
        self.calibration.fit(score[normal], peak[normal], category[normal], self.pixels, names, index[normal] < 0)
        self.classifier.fit(self.datamodule)
        score, label, category = score[index >= 0], label[index >= 0], category[index >= 0]
        normal, value = label == 0, mean_auroc(score, label, category)
        if value is not None:
            self.log("val/auroc", value, prog_bar=True)
        elif self.trainer.is_global_zero:
            print("no val/auroc: no category had both normals and pseudo-anomalies (limit_val_batches?)", flush=True)
        for name, chosen in (("normal", normal), ("pseudo_anomaly", ~normal)):
            if chosen.any():
                self.log(f"val/score_{name}", score[chosen].mean())

    def on_test_epoch_start(self) -> None:
        """Forget the last test."""
        self.predictions = []
        self.pixels = PixelHistogram(len(self.datamodule.categories)).to(self.device)

    def test_step(self, batch: Batch, batch_idx: int) -> Scores:
        """Collect predictions and count pixels."""
        scores = self.score(batch)
        if not (finite := all_finite(scores)).all():
            records = self.datamodule.records("test")
            refuse_non_finite([records[i] for i in batch["index"].tolist()], finite)
        content = is_content(batch.get("size"), batch["mask"])  # (B, H, W)
        self.predictions += map(TestedImage, *_truth(batch), self._predict(batch, scores, content))
        self.pixels.update(scores["pixel"], batch["mask"], batch["category"], content)
        return scores

    def on_test_epoch_end(self) -> None:
        """Compute every result from all processes' predictions; a callback or the entry point writes them."""
        records = self.datamodule.records("test")
        self.predictions = gather_rows(self.predictions)
        scored = [records[row.index] for row in self.predictions]
        score = torch.tensor([row.prediction.score for row in self.predictions], dtype=torch.float64)
        self.results = summarize(scored, score, self.calibration, self.pixels, self.datamodule.categories)
        self.log_dict({f"test/{name}": value for name, value in self.results.mean.items()})

    def _predict(self, batch: Batch, scores: Scores, content: Tensor) -> list[Prediction]:
        used = [self.calibration.of(self.datamodule.categories[i]) for i in batch["category"].tolist()]
        image = scores["image"].tolist()
        maps, inside = scores["pixel"].float().cpu().numpy(), content.cpu().numpy()  # (B, H, W) each
        masks, areas = segment(maps, image, used, inside, self.calibration.min_area)  # (B, H, W), (B,)
        return [
            Prediction(score, own.image, own.pixel, own.source, area, bounding_boxes(mask))
            for score, own, mask, area in zip(image, used, masks, areas, strict=True)
        ]


def _truth(batch: Batch) -> tuple[list[int], list[int], list[int]]:
    return batch["index"].tolist(), batch["category"].tolist(), batch["label"].tolist()


def all_finite(scores: Scores) -> Tensor:
    """Say which images of a batch have finite scores only (B,); maps are judged in float32, as they are counted."""
    return scores["image"].isfinite() & scores["pixel"].float().isfinite().flatten(1).all(1)
