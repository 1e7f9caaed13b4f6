"""Validation and test of every detector: thresholds are calibrated on held-out normal images."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from adlight.data.datamodule import AnomalyDataModule
from adlight.data.frames import content_of
from adlight.detection.detector import AnomalyDetector
from adlight.detection.gathering import (
    ScoredImage,
    TestedImage,
    TileJoiner,
    all_finite,
    gather_rows,
    ground_truth,
    replace_batch,
    scored_images,
    select_rows,
    to_tensors,
)
from adlight.detection.optimization import explain_divergence, stop_if_diverged
from adlight.detection.regions import bounding_boxes, segment
from adlight.metrics.pixel import PixelHistogram
from adlight.metrics.results import Results, check_finite_images, mean_auroc, summarize
from adlight.types import Batch, Prediction, Scores, UserError


class Pretrained(NamedTuple):
    """The part of a module whose weights come from a finished run."""

    run: str  # folder
    prefix: str  # prefix of the names of its tensors


class AnomalyModule(AnomalyDetector, pl.LightningModule):
    """Base class for training detectors; subclasses implement `training_step`, `configure_optimizers` and `score`.

    Validation calibrates the thresholds on the scores and pixels of held-out normal images; checkpoints store them with
    the category names. `val/auroc`, which checkpoints and searches maximize, compares these images with copies that
    contain synthetic anomalies, averaged over categories. The test split influences nothing.

    Attributes:
        validation_scores: scores of this process's validation images or tiles.
        normal_scores: scores of this process's whole normal validation images.
        joiner: joins tiles to images.
        predictions: predictions for the test images; after a test, of all processes, in the order of the split.
        pixels: histogram of the pixel scores of normal validation images or of test images, one group per category.
        results: metrics of the last test.
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
        """Score each fold of the training images with a model fitted to the others, unless fitting takes epochs.

        Yields:
            Batches of this process's images, and their scores.

        Raises:
            UserError: there are too few images to fit to.
        """
        return iter(())

    def describe(self) -> list[str]:
        """Describe the trained detector, in lines for the result table."""
        return []

    def metadata(self) -> dict[str, Any]:
        """Return what the result file records besides the metrics, by name."""
        auto = {"accuracy": self.classifier.accuracy, "num_normals": self.classifier.num_normals}
        return {"category_auto": auto} if self.classifier.names else {}

    @property
    def pretraining(self) -> pl.LightningModule | None:
        """The stage to train before this module, if any."""
        return None

    @property
    def pretrained(self) -> Pretrained | None:
        """The part to load from another run instead, if any."""
        return None

    def num_epochs(self, default: int, batches_per_epoch: Callable[[], int]) -> int:
        """Return the number of epochs; `default` is the trainer's setting."""
        return default

    @property
    def datamodule(self) -> AnomalyDataModule:
        """The trainer's data module."""
        return cast(Any, self.trainer).datamodule

    def on_validation_epoch_start(self) -> None:
        """Reset the collected scores and pixels."""
        self.validation_scores, self.normal_scores = [], []
        self.joiner = TileJoiner(self.datamodule.tiling)
        self.pixels = PixelHistogram(len(self.datamodule.categories)).to(self.device)

    def on_train_epoch_end(self) -> None:
        """Stop a run whose loss became non-finite; the checkpoints of earlier epochs are kept."""
        stop_if_diverged(self)

    def leave_split(self) -> None:
        """Forget the images of a validation or test after it; all further images are unseen images."""

    def validation_step(self, batch: Batch, batch_idx: int) -> Scores:
        """Collect the scores of normal images and synthetic anomalies, and the pixels of normal images."""
        scores = self.score(batch)
        self._collect(batch, scores)
        return scores

    def _collect(self, batch: Batch, scores: Scores) -> None:
        if not all_finite(scores).all():  # the histogram would reject them too, but without advice
            where = f"in epoch {self.current_epoch}: {explain_divergence()}"
            raise UserError(f"scores of validation images are not finite {where}")
        self.validation_scores += scored_images(batch, scores)
        for whole, joined in self.joiner(*select_rows(batch, scores, batch["label"] == 0)):
            self.normal_scores += scored_images(whole, joined)
            content = content_of(whole)  # (B, H, W)
            self.pixels.update(joined["pixel"], torch.zeros_like(content), whole["category"], content)

    def on_validation_epoch_end(self) -> None:
        """Add cross-fitted scores, calibrate, and log `val/auroc`; all processes compute it from all scores."""
        folds, self.joiner = self.calibration.folds, TileJoiner(self.datamodule.tiling)
        for batch, scores in self.cross_fit(folds) if folds > 1 else ():
            index = -1 - batch["index"]  # distinguishes training images from held-out ones
            self._collect(Batch(**{**batch, "index": index}), scores)
        score, peak, _, category, index = to_tensors(gather_rows(self.normal_scores))
        self.calibration.fit(score, peak, category, self.pixels, self.datamodule.categories, index < 0)
        self.classifier.fit(self.datamodule)
        score, _, label, category, index = to_tensors(gather_rows(self.validation_scores))
        held_out = index >= 0
        score, label, category = score[held_out], label[held_out], category[held_out]
        value = mean_auroc(score, label, category)
        if value is not None:
            self.log("val/auroc", value, prog_bar=True)
        elif self.trainer.is_global_zero:
            print("no val/auroc: no category has both normal and anomalous images (limit_val_batches?)", flush=True)
        for name, selected in (("normal", label == 0), ("pseudo_anomaly", label != 0)):
            if selected.any():
                self.log(f"val/score_{name}", score[selected].mean())
        self.leave_split()

    def on_test_epoch_start(self) -> None:
        """Reset the collected predictions and pixels."""
        if not self.calibration.is_fitted:
            raise UserError("no threshold was calibrated: train again, or set calibration.image and calibration.pixel")
        self.predictions, self.joiner = [], TileJoiner(self.datamodule.tiling, reconstruct=True)
        self.pixels = PixelHistogram(len(self.datamodule.categories)).to(self.device)

    def test_step(self, batch: Batch, batch_idx: int) -> Scores:
        """Collect predictions and pixel scores."""
        scores = self.score(batch)
        records, index = self.datamodule.records("test"), batch["tile"][:, 0] if "tile" in batch else batch["index"]
        check_finite_images([records[i] for i in index.tolist()], all_finite(scores))
        empty = select_rows(batch, scores, slice(0))
        whole, scores = next(self.joiner(batch, scores), empty)  # all tiles of a batch belong to the same image
        replace_batch(batch, whole)  # callbacks receive the same dict, and show whole images
        if not len(batch["index"]):
            return scores
        content = content_of(batch)  # (B, H, W)
        self.predictions += map(TestedImage, *ground_truth(batch), self._predict(batch, scores, content))
        self.pixels.update(scores["pixel"], batch["mask"], batch["category"], content)
        return scores

    def last_predictions(self, count: int) -> list[TestedImage]:
        """Return the last `count` predictions, such as those of a batch."""
        return self.predictions[len(self.predictions) - count :]

    def on_test_epoch_end(self) -> None:
        """Compute the results from the predictions of all processes; callbacks or the entry point write them."""
        records = self.datamodule.records("test")
        self.predictions = gather_rows(self.predictions)
        scored = [records[row.index] for row in self.predictions]
        score = torch.tensor([row.prediction.score for row in self.predictions], dtype=torch.float64)
        self.results = summarize(scored, score, self.calibration, self.pixels, self.datamodule.categories)
        self.log_dict({f"test/{name}": value for name, value in self.results.mean.items()})
        self.leave_split()

    def _predict(self, batch: Batch, scores: Scores, content: Tensor) -> list[Prediction]:
        thresholds = [self.calibration.of(self.datamodule.categories[i]) for i in batch["category"].tolist()]
        image = scores["image"].tolist()
        maps, inside = scores["pixel"].float().cpu().numpy(), content.cpu().numpy()  # (B, H, W) each
        masks, areas = segment(maps, image, thresholds, inside, self.calibration)  # (B, H, W), (B,)
        return [
            Prediction(score, threshold.image, threshold.pixel, threshold.source, area, bounding_boxes(mask))
            for score, threshold, mask, area in zip(image, thresholds, masks, areas, strict=True)
        ]
