"""Training of the multi-mask masked autoencoder (article, section 2.4)."""

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Generator, Tensor
from torch.optim import Optimizer

from adlight.data.datamodule import AnomalyDataModule
from adlight.data.frames import group_by_size
from adlight.data.pseudo_dataset import Images
from adlight.detection.crossfitting import assign_folds, fetch
from adlight.detection.maps import hide_outside
from adlight.detection.module import AnomalyModule
from adlight.detection.optimization import WarmupCosine, log_terms, step_rng
from adlight.features.cache import images_of
from adlight.features.optimizer import parameter_groups
from adlight.mae.masking import Ratio, Scheme, draw_masks
from adlight.mae.network import MaskedAutoencoder
from adlight.mae.objective import ReconstructionLoss
from adlight.mae.scorer import MAEDetector, MultiMaskScorer, reconstruct
from adlight.mae.tokens import PixelTokenizer
from adlight.mae.whitened import Pair
from adlight.settings import Built, Decay, Seed, checked
from adlight.types import Batch, Scores, UserError

LINEAR_IMAGES = 1000  # largest number of images for fitting the linear start, which needs all their tokens at once
BATCH = 32


class MAEModule(MAEDetector, AnomalyModule):
    """Trains the autoencoder to reconstruct hidden patches from visible patches.

    Args:
        tokenizer, network, scorer, ema, linear_start: see `MAEDetector`.
        objective: reconstruction loss; None if the detector will not be trained (evaluation needs no LPIPS weights).
        optimizer: constructor of the optimizer, which takes parameter groups.
        mask_ratio: r, fraction of the patches that a view hides, see `num_views`.
        masks: `complementary` or `single` (the plain MAE).
        warmup_epochs: number of epochs of linear warm-up; half a cosine to 0 follows. Both change at every step.
        seed: seed of the masks, which otherwise depend only on the step and the process.
        folds: number of folds of the held-out images if residuals are whitened.
        training_residuals: number of training images added to the held-out ones when estimating covariances.
    """

    @checked
    def __init__(
        self,
        tokenizer: Built[PixelTokenizer],
        network: Callable[..., MaskedAutoencoder],
        objective: Built[ReconstructionLoss] | None,
        scorer: Built[MultiMaskScorer],
        optimizer: Callable[..., Optimizer],
        mask_ratio: Ratio = 0.75,
        masks: Scheme = "complementary",
        warmup_epochs: NonNegativeFloat = 10,
        ema: Decay = 0.0,
        seed: Seed = 0,
        linear_start: NonNegativeInt | None = None,
        folds: Annotated[int, Field(ge=2)] = 5,
        training_residuals: PositiveInt = 1000,
    ) -> None:
        super().__init__(tokenizer, network, scorer, ema, linear_start)
        draw_masks(masks, mask_ratio, self.network.num_patches, Generator())  # checks the ratio
        self.objective, self.optimizer = objective, optimizer
        self.mask_ratio, self.masks, self.warmup_epochs, self.seed = mask_ratio, masks, warmup_epochs, seed
        self.num_folds, self.training_residuals = folds, training_residuals
        self.averaged_step = 0
        self.fold_of: Tensor | None = None  # (N,), folds of the held-out images during a validation

    def describe(self) -> list[str]:
        """Describe the loss: its terms and their weights."""
        if self.objective is None:
            return []
        return ["loss: " + " + ".join(f"{weight:g} {name}" for name, weight in self.objective.weights.items())]

    def on_fit_start(self) -> None:
        """Fit the linear start; all processes fit it to the same images."""
        self.fit_linear(self.datamodule)

    def fit_linear(self, data: AnomalyDataModule) -> None:
        """Fit the linear start, if there is one, to evenly spaced training images without augmentation."""
        if self.linear is None:
            return
        images, tokens = images_of(data, "train"), []
        for part in _space_evenly(len(images), LINEAR_IMAGES).split(BATCH):
            batch = fetch(images, part, self.linear.mean.device)
            tokens.append(self.tokenizer.tokenize(batch["image"], batch.get("size")))
        self.linear.fit(torch.cat(tokens))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Draw masks, predict the patches that each view hides, and compare them with the image (eq. 2 to 4)."""
        assert self.objective is not None  # see `configure_optimizers`
        image, size = batch["image"], batch.get("size")  # (B, C, H, W), (B, 2) if padded
        rng = step_rng(self, "masks", self.seed)
        mask = draw_masks(self.masks, self.mask_ratio, self.network.num_patches, rng)  # (n, L)
        y = reconstruct(self.network, self.tokenizer, image, mask, size, linear=self.linear)  # (B, C, H, W)
        terms = self.objective(image, y, size, batch.get("content"))
        log_terms(self, terms, len(image))
        return terms["loss"]

    def configure_optimizers(self) -> Any:
        """Build the optimizer, with weight decay on matrices only, linear warm-up and half a cosine (He 2021)."""
        if self.objective is None:
            raise UserError("model.objective is null: training needs an objective")
        optimizer = self.optimizer(parameter_groups([self.network]))
        total = int(self.trainer.estimated_stepping_batches)
        warmup = self.warmup_epochs * total / max(self.trainer.max_epochs or 1, 1)
        schedule = WarmupCosine(optimizer, warmup, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Count the steps of a resumed run as averaged."""
        self.averaged_step = self.global_step

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Update the averaged weights after each optimizer step, which may take several batches."""
        if self.ema is not None and self.global_step > self.averaged_step:
            self.ema.update(self.network)
            self.averaged_step = self.global_step

    def on_validation_epoch_start(self) -> None:
        """Fit the whitening to the residuals of held-out normal images, fold by fold, and of training images."""
        super().on_validation_epoch_start()
        if self.scorer.whitening is None or not self.scorer.whitens:
            return
        held_out, images = images_of(self.datamodule, "val"), images_of(self.datamodule, "train")
        normal, self.fold_of = assign_folds(held_out, self.num_folds)
        fold = self.fold_of[normal]
        context = self.trainer.precision_plugin.forward_context()
        with torch.inference_mode(False), torch.no_grad(), context:  # the fitted tensors are kept
            parts = [self._residual_pairs(held_out, normal[fold == k]) for k in fold.unique()]
            more = self._residual_pairs(images, _space_evenly(len(images), self.training_residuals))
        self.scorer.whitening.fit(parts, more)

    def _residual_pairs(self, images: Images, index: Tensor) -> list[Pair]:
        """Reconstruct images as in scoring. -> images and reconstructions (n, C, H, W), in parts of equal size."""
        mask, visible = self.scorer.drawn_masks(self.network.num_patches)
        pairs = []
        for part in index.split(BATCH):
            batch = fetch(images, part, self.device)
            image, size = batch["image"], batch.get("size")
            y = reconstruct(self.averaged, self.tokenizer, image, mask, size, visible, self.linear).float()
            y = hide_outside(y, image, batch.get("content"))  # (B, C, H, W)
            groups = [(slice(None), *image.shape[-2:])] if size is None else group_by_size(size)
            pairs += [(image[rows, :, :h, :w], y[rows, :, :h, :w]) for rows, h, w in groups]
        return pairs

    def leave_split(self) -> None:
        """Score all further images as unseen images."""
        self.fold_of = None

    def score(self, batch: Batch) -> Scores:
        """Score a batch; in validation, residuals are compared with the normal residuals of the other folds."""
        return self.score_by_fold(batch, None if self.fold_of is None else self.fold_of[batch["index"].cpu()])


def _space_evenly(count: int, most: int) -> Tensor:
    """Choose at most `most` evenly spaced indices out of `count`."""
    return torch.arange(0, count, max(1, -(-count // most)))
