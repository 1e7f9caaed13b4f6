"""Detectors in feature space: cells of normal images are predicted, and what is mispredicted is anomalous."""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.optim import Optimizer

from adlight.detection.inference import exactly
from adlight.detection.module import AnomalyModule
from adlight.detection.optimization import log_terms, schedule_by_step, step_rng, stop_if_diverged
from adlight.features.backbones import Backbone
from adlight.features.cache import FeatureCache
from adlight.features.detector import FeatureDetector
from adlight.features.fitting import check_members, cross_fit, fit_cells, held_out_cells
from adlight.features.optimizer import parameter_groups
from adlight.features.predictor import Copies, Predictor, TrainingCells, extract_features, standardize
from adlight.features.rotation import make_copies
from adlight.features.scorer import CellScorer
from adlight.features.splits import SplitFeatures, folds_of, images_of
from adlight.settings import Built, PathName, Share, checked
from adlight.types import Batch, Scores


class FeatureModule(FeatureDetector, AnomalyModule):
    """Predicts the feature map of a frozen backbone, cell by cell, with one predictor or several.

    What is not trained is fitted before the first epoch. Every validation measures the residuals of the held-out normal
    images, whose covariances the detector keeps; a held-out image is scored with those of the others.

    Args:
        backbone: makes the features; frozen.
        predictors: by name; each is made from the number of channels.
        scorer: from cells to images and pixels.
        members: names of the predictors that are used; None: all.
        optimizer: makes the optimizer of what is trained; None where nothing is.
        warmup: share of the steps in which the learning rate rises; a half cosine to 0 follows.
        cache: folder in which features are kept from run to run; None: in memory.
        clusters: of images, each with its own covariance of residuals.
        folds: of the held-out images.
        training_residuals: so many training images join the held-out ones in the covariances.
        clip: largest norm of all gradients together.
        rotations: rotated copies of training images join them where rotated images are normal, see `make_copies`.

    Raises:
        ValueError: a number out of range, or something is trained without an optimizer.
        UserError: a member that there is not.
    """

    centers: Tensor

    @checked
    def __init__(
        self,
        backbone: Built[Backbone],
        predictors: Annotated[dict[str, Callable[..., Predictor]], Field(min_length=1)],
        scorer: Built[CellScorer],
        optimizer: Callable[..., Optimizer] | None = None,
        warmup: Share = 0.05,
        cache: PathName | None = None,
        clusters: PositiveInt = 8,
        folds: Annotated[int, Field(ge=2)] = 5,
        training_residuals: NonNegativeInt = 300,
        clip: PositiveFloat = 1.0,
        members: Annotated[Sequence[str], Field(min_length=1)] | None = None,
        rotations: bool = True,
    ) -> None:
        super().__init__(backbone, predictors, scorer, members)
        self.rotations = rotations and any(one.takes_copies for one in self.members.values())
        self.copies: Copies | None = None
        self.automatic_optimization = any(one.trained for one in self.members.values())
        if self.automatic_optimization and optimizer is None:
            raise ValueError("optimizer is missing, and a predictor is trained by gradient")
        self.optimizer, self.warmup, self.clip = optimizer, warmup, clip
        self.clusters, self.num_folds, self.training_residuals = clusters, folds, training_residuals
        self.splits = SplitFeatures(FeatureCache(backbone, cache))
        self.split: str | None = None  # whose cached features are scored

    def describe(self) -> list[str]:
        """Name the backbone, and say what was fitted or trained."""
        parts = "; ".join(one.summary() for one in self.members.values())
        if self.copies is not None:
            parts += f"; {len(self.copies.owner.unique())} training images rotated too"
        return [f"features: {self.backbone.name} ({', '.join(self.backbone.layers)}); {parts}"]

    def on_fit_start(self) -> None:
        """Fit what is not trained: statistics of channels, clusters of images, memories."""
        check_members(self, self.calibration.folds)
        fitted = fit_cells(self.features("train"), self.members.values(), self.clusters, self.device, self._rotate)
        self.copies = fitted.cells.copies
        self.mean, self.std, self.centers = fitted.cells.mean, fitted.cells.std, fitted.centers
        self.pictures.fit(fitted.cells, images_of(self.datamodule, "train"))
        self.residual_map.folds = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Compute the loss of all that is trained; augmented images pass the backbone, others have done so before."""
        if not self.automatic_optimization:
            return None
        rng = step_rng(self, "features", self.datamodule.seed)
        if self.datamodule.augmentation is not None:
            cells = standardize(extract_features(self.backbone, batch), self.mean, self.std)
        else:
            cells = self._training_cells().draw(batch["index"].cpu(), rng)  # (B, h, w, C)
        loss = torch.stack([one.loss(cells, rng) for one in self.members.values() if one.trained]).sum()
        log_terms(self, {"loss": loss}, len(cells))
        return loss + 0 * self.unused

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradients."""
        nn.utils.clip_grad_norm_(self.parameters(), self.clip)

    def on_train_epoch_end(self) -> None:
        """Stop a run whose loss became non-finite; the checkpoints of earlier epochs are kept."""
        stop_if_diverged(self)

    def configure_optimizers(self) -> Any:
        """Set the predictors' matrices apart, decay matrices only; warm up, then half a cosine, by step."""
        if self.optimizer is None or not self.automatic_optimization:
            return []
        trained = [one for one in self.members.values() if one.trained]
        return schedule_by_step(self, self.optimizer(parameter_groups(trained, self.unused)), self.warmup)

    def on_validation_epoch_start(self) -> None:
        """Measure the residuals of the held-out normal images, fold by fold."""
        super().on_validation_epoch_start()
        self.normal, self.fold_of = folds_of(images_of(self.datamodule, "val"), self.num_folds)
        with torch.no_grad():
            held_out, cells = held_out_cells(self, self.mean, self.std), self._training_cells()
            self.residual_map.fit(self.members, self.centers, held_out, cells.sample(self.training_residuals))
        self.split = "val"

    def on_validation_epoch_end(self) -> None:
        """Calibrate; images are scored as unseen ones from now on."""
        super().on_validation_epoch_end()
        self.split = None
        if self.trainer.state.fn != "fit":
            self.residual_map.folds = []

    def on_test_epoch_start(self) -> None:
        """Compute or load the test images' features."""
        super().on_test_epoch_start()
        self.features("test")
        self.split = "test"

    def on_test_epoch_end(self) -> None:
        """Compute the results."""
        super().on_test_epoch_end()
        self.split = None

    def score(self, batch: Batch) -> Scores:
        """Score a batch; a validation or test reads its features from the cache."""
        if self.split is None:
            return super().score(batch)
        index = batch["index"].cpu()
        with exactly(batch["image"].device):
            known = self.features(self.split)[index].to(batch["image"].device)  # (B, h, w, C)
            fold = self.fold_of[index] if self.split == "val" else None
            return self.score_features(known, batch, fold)

    def cross_fit(self, folds: int) -> Iterator[tuple[Batch, Scores]]:
        """Score the training images by predictors fitted to the other folds; none where one is trained by gradient."""
        return iter(()) if self.automatic_optimization else cross_fit(self, folds)

    def features(self, split: str) -> Tensor:
        """Compute or load a split's features (N, h, w, C) float16."""
        return self.splits.features(self.datamodule, split, self.device)

    def _training_cells(self) -> TrainingCells:
        return TrainingCells(self.features("train"), self.mean, self.std, self.copies)

    def _rotate(self, cells: TrainingCells, centers: Tensor) -> Copies | None:
        images = images_of(self.datamodule, "train")
        return make_copies(cells, centers, images, self.splits.cache) if self.rotations else None
