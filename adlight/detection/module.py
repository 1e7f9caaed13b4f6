"""What every detector does after training: score, calibrate thresholds on validation normals, test."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from adlight.data.datamodule import AnomalyDataModule
from adlight.data.frames import content_of
from adlight.detection.detector import AnomalyDetector
from adlight.detection.gathering import ScoredImage, TestedImage, columns, gather_rows
from adlight.detection.joining import TileJoiner, empty, replace_batch, select_rows
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
    checkpoint carries them with the categories' names. `val/auroc` compares those normals with copies that are
    synthetic anomalies, as a mean over categories: it is what checkpoints and searches look at. The test split steers
    nothing.

    Attributes:
        validation_scores: of this process's images or tiles, during a validation.
        normal_scores: of whole normal images, likewise.
        joiner: joins tiles.
        predictions: of the test images; after a test those of all processes, in the order of the split.
        pixels: the pixel scores of validation normals or test images, one group per category.
        results: the metrics of the last test.
    """

    def __init__(self) -> None:
        super().__init__()
        self.validation_scores: list[ScoredImage] = []
        self.normal_scores: list[ScoredImage] = []
        self.joiner = TileJoiner(None)
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
        self.validation_scores, self.normal_scores = [], []
        self.joiner = TileJoiner(self.datamodule.tiling)
        self.pixels = PixelHistogram(len(self.datamodule.categories)).to(self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> Scores:
        """Collect scores of normals and pseudo-anomalies, and the pixels of normals."""
        scores = self.score(batch)
        self._collect(batch, scores, self.joiner)
        return scores

    def _collect(self, batch: Batch, scores: Scores, joiner: TileJoiner) -> None:
        if not all_finite(scores).all():  # before the pixels, which would be refused without advice
            raise UserError(f"scores of validation images are not finite in epoch {self.current_epoch}: {diverged()}")
        self.validation_scores += map(ScoredImage, *_truth(batch), scores["image"].tolist(), _peaks(batch, scores))
        for whole, joined in joiner(*select_rows(batch, scores, batch["label"] == 0)):
            content, category = content_of(whole), whole["category"]  # (B, H, W), (B,)
            self.normal_scores += map(ScoredImage, *_truth(whole), joined["image"].tolist(), _peaks(whole, joined))
            self.pixels.update(joined["pixel"], torch.zeros_like(content), category, content)

    def _collect_cross_fitted(self) -> None:
        folds, joiner = self.calibration.folds, TileJoiner(self.datamodule.tiling)
        for batch, scores in self.cross_fit(folds) if folds > 1 else ():
            self._collect(Batch(**{**batch, "index": -1 - batch["index"]}), scores, joiner)  # no held-out image's

    def on_validation_epoch_end(self) -> None:
        """Calibrate the thresholds and log `val/auroc`, from the scores of all processes: nothing is left to sync."""
        self._collect_cross_fitted()
        score, peak, _, category, index = columns(gather_rows(self.normal_scores))
        self.calibration.fit(score, peak, category, self.pixels, self.datamodule.categories, index < 0)
        self.classifier.fit(self.datamodule)
        score, _, label, category, index = columns(gather_rows(self.validation_scores))
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
        if not self.calibration.is_fitted:
            raise UserError("no threshold was calibrated: train anew, or set calibration.image and calibration.pixel")
        self.predictions, self.joiner = [], TileJoiner(self.datamodule.tiling, reconstruct=True)
        self.pixels = PixelHistogram(len(self.datamodule.categories)).to(self.device)

    def test_step(self, batch: Batch, batch_idx: int) -> Scores:
        """Collect predictions and count pixels."""
        scores = self.score(batch)
        if not (finite := all_finite(scores)).all():
            records, numbers = (
                self.datamodule.records("test"),
                batch["tile"][:, 0] if "tile" in batch else batch["index"],
            )
            refuse_non_finite([records[i] for i in numbers.tolist()], finite)
        whole, scores = next(self.joiner(batch, scores), empty(batch))
        replace_batch(batch, whole)  # callbacks look at images, too
        if not len(whole["index"]):
            return scores
        content = content_of(batch)  # (B, H, W)
        self.predictions += map(TestedImage, *_truth(batch), self._predict(batch, scores, content))
        self.pixels.update(scores["pixel"], batch["mask"], batch["category"], content)
        return scores

    def last_predictions(self, count: int) -> list[TestedImage]:
        """Give those of the last batch."""
        return self.predictions[len(self.predictions) - count :]

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
        masks, areas = segment(maps, image, used, inside, self.calibration)  # (B, H, W), (B,)
        return [
            Prediction(score, own.image, own.pixel, own.source, area, bounding_boxes(mask))
            for score, own, mask, area in zip(image, used, masks, areas, strict=True)
        ]


def _peaks(batch: Batch, scores: Scores) -> list[float]:
    return scores["pixel"].float().masked_fill(~content_of(batch), -torch.inf).amax((1, 2)).tolist()  # (B,)


def _truth(batch: Batch) -> tuple[list[int], list[int], list[int]]:
    return batch["index"].tolist(), batch["category"].tolist(), batch["label"].tolist()


def all_finite(scores: Scores) -> Tensor:
    """Say which images of a batch have finite scores only (B,); maps are judged in float32, as they are counted."""
    return scores["image"].isfinite() & scores["pixel"].float().isfinite().flatten(1).all(1)
