"""Training of detectors in feature space."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.optim import Optimizer

from adlight.detection.crossfitting import assign_folds, fetch, image_numbers_of, split_folds
from adlight.detection.inference import full_precision
from adlight.detection.module import AnomalyModule
from adlight.detection.optimization import log_terms, schedule_by_step, step_rng
from adlight.features.backbones import Backbone
from adlight.features.cache import FeatureCache, images_of
from adlight.features.cells import Copies, TrainingCells, extract_features, prepare_cells, standardize
from adlight.features.detector import FeatureDetector
from adlight.features.optimizer import parameter_groups
from adlight.features.predictor import Predictor, check_predictors
from adlight.features.residuals import ResidualMap
from adlight.features.rotation import make_copies
from adlight.features.scorer import CellScorer, score_cells
from adlight.settings import Built, PathName, Share, checked
from adlight.types import Batch, Scores


class FeatureModule(FeatureDetector, AnomalyModule):
    """Predicts the feature map of a frozen backbone, cell by cell, with one or several predictors.

    Predictors that are not trained by gradient are fitted before the first epoch. Validation estimates the covariances
    of the residuals of held-out normal images; each held-out image is whitened without the residuals of its own fold.

    Args:
        backbone, predictors, scorer, members: see `FeatureDetector`.
        optimizer: constructor of the optimizer; None if nothing is trained.
        warmup: fraction of the steps in which the learning rate rises linearly; half a cosine to 0 follows.
        cache: folder that keeps features between runs; None keeps them in memory.
        clusters: number of image clusters; each has its own residual covariance.
        folds: number of folds of the held-out images.
        training_residuals: number of training images added to the held-out ones when estimating covariances.
        clip: largest norm of the gradient.
        rotations: whether to add rotated copies of training images where rotations are normal, see `make_copies`.

    Raises:
        ValueError: a number is out of range, or a trained predictor has no optimizer.
        UserError: a member is unknown.
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
        self.rotations = rotations and any(predictor.takes_copies for predictor in self.members.values())
        self.copies: Copies | None = None
        self.trained = [predictor for predictor in self.members.values() if predictor.trained]
        self.automatic_optimization = bool(self.trained)
        if self.trained and optimizer is None:
            raise ValueError("optimizer is missing, and a predictor is trained by gradient")
        self.optimizer, self.warmup, self.clip, self.cache = optimizer, warmup, clip, FeatureCache(backbone, cache)
        self.clusters, self.num_folds, self.training_residuals = clusters, folds, training_residuals
        self.split: str | None = None  # the split whose cached features are scored

    def describe(self) -> list[str]:
        """Describe the backbone and the predictors."""
        parts = [predictor.summary() for predictor in self.members.values()]
        parts += [] if self.copies is None else [f"{len(self.copies.source.unique())} training images also rotated"]
        return [f"features: {self.backbone.name} ({', '.join(self.backbone.layers)}); {'; '.join(parts)}"]

    def on_fit_start(self) -> None:
        """Fit everything that is not trained: channel statistics, image clusters, memories."""
        images = images_of(self.datamodule, "train")
        check_predictors(self.members.values(), len(images), 0 if self.trained else self.calibration.folds)
        cells, self.centers = prepare_cells(self.features("train"), self.clusters, self.device)
        self.mean, self.std = cells.mean, cells.std
        if self.rotations:
            self.copies = cells.copies = make_copies(cells, self.centers, images, self.cache)
        for predictor in self.members.values():
            predictor.fit(cells)
        self.pictures.fit(cells, images)
        self.residual_map.folds = []  # the predictors changed: all residuals are measured again

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Sum the predictors' losses; only augmented images pass through the backbone, others are cached."""
        if not self.trained:
            return None
        rng = step_rng(self, "features", self.datamodule.seed)
        if self.datamodule.augmentation is not None:
            cells = standardize(extract_features(self.backbone, batch), self.mean, self.std)
        else:
            cells = self._cells()[batch["index"].cpu()]  # (B, h, w, C)
        loss = torch.stack([predictor.loss(cells, rng) for predictor in self.trained]).sum()
        log_terms(self, {"loss": loss}, len(cells))
        return loss + 0 * self.unused

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient."""
        nn.utils.clip_grad_norm_(self.parameters(), self.clip)

    def configure_optimizers(self) -> Any:
        """Make the optimizer, with linear warmup followed by half a cosine."""
        if self.optimizer is None or not self.trained:
            return []
        return schedule_by_step(self, self.optimizer(parameter_groups(self.trained, self.unused)), self.warmup)

    def on_validation_epoch_start(self) -> None:
        """Measure the residuals of the held-out normal images, fold by fold."""
        super().on_validation_epoch_start()
        self.normal, self.fold_of = assign_folds(images_of(self.datamodule, "val"), self.num_folds)
        with torch.no_grad():
            held_out, sample = self._held_out_cells(self.mean, self.std), self._cells().sample(self.training_residuals)
            self.residual_map.fit(self.members, self.centers, held_out, sample)
        self.split = "val"

    def on_test_epoch_start(self) -> None:
        """Compute or load the features of the test images."""
        super().on_test_epoch_start()
        self.cache.forget("train", "val")
        self.features("test")
        self.split = "test"

    def leave_split(self) -> None:
        """Score all further images as unseen images; during a fit, the next validation reuses the maps of the folds."""
        self.split = None
        if self.trainer.state.fn != "fit":
            self.residual_map.folds = []

    def score(self, batch: Batch) -> Scores:
        """Score a batch; validation and test take its features from the cache."""
        if self.split is None:
            return super().score(batch)
        index, device = batch["index"].cpu(), batch["image"].device
        fold = self.fold_of[index] if self.split == "val" else None
        with full_precision(device):
            return self.score_features(self.features(self.split)[index].to(device), batch, fold)

    def cross_fit(self, folds: int) -> Iterator[tuple[Batch, Scores]]:
        """Score each fold of the training images with predictors fitted to the others, unless one is trained."""
        if self.trained:
            return
        dataset, features = self.datamodule.datasets["train"], self.features("train")
        check_predictors(self.members.values(), len(dataset), folds)
        if self.rotations and self.trainer.state.fn != "fit":  # a loaded run has copies only in its predictors
            images = images_of(self.datamodule, "train")
            angles = max(predictor.count_angles() for predictor in self.members.values())
            self.copies = make_copies(self._cells(), self.centers, images, self.cache, angles)
        splits = split_folds(image_numbers_of(dataset), folds, self.trainer.global_rank, self.trainer.world_size)
        for rest, fold in splits:
            cells, members, residual_map = self._refit(features, rest)
            for part in fold.split(self.datamodule.eval_batch_size):
                batch = fetch(dataset, part, self.device)
                with full_precision(self.device):
                    x = standardize(features[part].to(self.device), cells.mean, cells.std)
                    score, pixel, *_ = score_cells(x, members, residual_map, self.scorer, batch)
                yield batch, Scores(image=score, pixel=pixel, reconstruction=batch["image"])

    def _refit(self, features: Tensor, rows: Tensor) -> tuple[TrainingCells, dict[str, Predictor], ResidualMap]:
        """Fit copies of the predictors and of the residual map to some training images."""
        shared = {id(tensor): tensor for tensor in self.predictors.buffers()}  # `fit` replaces them
        members, residual_map = deepcopy((self.members, self.residual_map), shared)
        with full_precision(self.device):
            cells, centers = prepare_cells(features[rows], self.clusters, self.device)
            cells.copies = None if self.copies is None else self.copies.of_images(rows)
            for predictor in members.values():
                predictor.fit(cells)
            held_out, residual_map.folds = self._held_out_cells(cells.mean, cells.std), []
            residual_map.fit(members, centers, held_out, cells.sample(self.training_residuals))
        return cells, members, residual_map

    def features(self, split: str) -> Tensor:
        """Compute or load the features of a split (N, h, w, C) float16."""
        return self.cache.features_of(self.datamodule, split, self.device)

    def _held_out_cells(self, mean: Tensor, std: Tensor) -> list[Tensor]:
        """Standardize the cells (n, h, w, C) of the held-out normal images, fold by fold."""
        cells, fold = TrainingCells(self.features("val"), mean, std), self.fold_of[self.normal]
        return [cells[self.normal[fold == k]] for k in self.fold_of.unique()]

    def _cells(self) -> TrainingCells:
        return TrainingCells(self.features("train"), self.mean, self.std)
