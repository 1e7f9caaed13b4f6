"""Training of the multi-mask masked autoencoder (article, section 2.4)."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Generator, Tensor
from torch.optim import Optimizer

from adlight.detection.module import AnomalyModule
from adlight.detection.optimization import WarmupCosine, log_terms, step_rng, stop_if_diverged
from adlight.features.optimizer import parameter_groups
from adlight.mae.detector import MAEDetector
from adlight.mae.fitting import fit_linear, fit_whitening
from adlight.mae.masking import Ratio, Scheme, draw_masks
from adlight.mae.network import MaskedAutoencoder
from adlight.mae.objective import ReconstructionLoss
from adlight.mae.scorer import MultiMaskScorer, reconstruct
from adlight.mae.tokens import PixelTokenizer
from adlight.settings import Built, Decay, Seed, checked
from adlight.types import Batch, Scores, UserError


class MAEModule(MAEDetector, AnomalyModule):
    """Hide everything in turn, reconstruct it from the rest, learn from the difference.

    Args:
        tokenizer: makes tokens of images, and images of tokens.
        network: makes the autoencoder for the tokenizer's `grid`, `token_dim` and `token_mean`.
        objective: reconstruction loss; None where nothing will be trained (evaluation needs no LPIPS weights).
        scorer: scores images with the trained network.
        optimizer: makes the optimizer from parameter groups.
        mask_ratio: r, the share of the patches that a view hides.
        masks: `complementary` or `single` (the plain MAE).
        warmup_epochs: length of the linear warm-up; a half cosine to 0 follows, both per step.
        ema: decay of the averaged weights that score; 0 = none.
        seed: of the masks, which depend on it, the batch and the process only.
        linear_start: see `MAEDetector`.
        folds: of the held-out images, where residuals are whitened.
        training_residuals: so many training images join them in the covariances.

    Raises:
        ValueError: a mask ratio that the scheme does not allow, or a number out of range.
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
        draw_masks(masks, mask_ratio, self.network.num_patches, Generator())  # an impossible ratio fails here
        self.objective, self.optimizer = objective, optimizer
        self.mask_ratio, self.masks, self.warmup_epochs, self.seed = mask_ratio, masks, warmup_epochs, seed
        self.num_folds, self.training_residuals = folds, training_residuals
        self.averaged_step = 0
        self.fold_of: Tensor | None = None  # of the validation's images

    def describe(self) -> list[str]:
        """Name the terms of the loss and their weights."""
        if self.objective is None:
            return []
        return ["loss: " + " + ".join(f"{weight:g} {name}" for name, weight in self.objective.weights.items())]

    def on_fit_start(self) -> None:
        """Fit the linear start; all processes to the same images."""
        if self.linear is not None:
            fit_linear(self.linear, self.tokenizer, self.datamodule)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Draw masks, predict what each view hides, compare (eq. 2 to 4)."""
        assert self.objective is not None  # see `configure_optimizers`
        image, size = batch["image"], batch.get("size")  # (B, C, H, W), (B, 2) where padded
        rng = step_rng(self, "masks", self.seed)
        mask = draw_masks(self.masks, self.mask_ratio, self.network.num_patches, rng)  # (n, L)
        reconstruction = reconstruct(
            self.network, self.tokenizer, image, mask, size, linear=self.linear
        )  # (B, C, H, W)
        terms = self.objective(image, reconstruction, size, batch.get("content"))
        log_terms(self, terms, len(image))
        return terms["loss"]

    def configure_optimizers(self) -> Any:
        """Decay matrices only; warm up, then half a cosine, per step (He 2021).

        Raises:
            UserError: there is no objective to train by.
        """
        if self.objective is None:
            raise UserError("model.objective is null, which leaves nothing to train by")
        optimizer = self.optimizer(parameter_groups([self.network]))
        total = int(self.trainer.estimated_stepping_batches)
        warmup = self.warmup_epochs * total / max(self.trainer.max_epochs or 1, 1)
        schedule = WarmupCosine(optimizer, warmup, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Note the steps that a resumed run has averaged already."""
        self.averaged_step = self.global_step

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Update the averaged weights, once per step however many batches it takes."""
        if self.ema is not None and self.global_step > self.averaged_step:
            self.ema.update(self.network)
            self.averaged_step = self.global_step

    def on_train_epoch_end(self) -> None:
        """Stop once the loss is not finite; the checkpoints of earlier epochs are kept."""
        stop_if_diverged(self)

    def on_validation_epoch_start(self) -> None:
        """Whiten residuals by those of the held-out normal images, fold by fold, and of training images."""
        super().on_validation_epoch_start()
        if self.scorer.whitens:
            self.fold_of = fit_whitening(self, self.num_folds, self.training_residuals)

    def on_validation_epoch_end(self) -> None:
        """Calibrate."""
        super().on_validation_epoch_end()
        self.leave_split()

    def leave_split(self) -> None:
        """Score images as unseen ones from now on."""
        self.fold_of = None

    def score(self, batch: Batch) -> Scores:
        """Score a batch; a held-out image without what its own fold says of normal residuals."""
        return self.score_by_fold(batch, None if self.fold_of is None else self.fold_of[batch["index"].cpu()])
