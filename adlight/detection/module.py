"""What every detector does after training: score, calibrate a threshold on validation normals, test."""

from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol, TypeVar

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from adlight.detection.maps import bounding_boxes
from adlight.metrics.image import auroc, parse_rule
from adlight.metrics.pixel import PixelHistogram
from adlight.metrics.results import Results, refuse_non_finite, summarise
from adlight.metrics.thresholds import Thresholds, calibrate_all
from adlight.types import Batch, Prediction, Scores, UserError


@dataclass(frozen=True)
class ScoredImage:
    """A validation image's score beside the truth."""

    index: int  # of the image in its split
    category: int  # position in the data module's categories
    label: int
    score: float


@dataclass(frozen=True)
class TestedImage:
    """A test image's prediction beside the truth."""

    __test__ = False  # pytest: no test case
    index: int  # of the image in its split
    category: int  # position in the data module's categories
    label: int
    prediction: Prediction


class AnomalyModule(pl.LightningModule):
    """Base of the detectors. A subclass writes `training_step`, `configure_optimizers` and `score`.

    Validation calibrates: thresholds are set from the scores of held-out normal images and of their pixels, for each
    category and for all together; a checkpoint carries them with the categories' names. `val/auroc` compares those
    normals with copies that have pasted defects, as a mean over categories: it is what checkpoints and searches look
    at. The test split steers nothing.

    Args:
        threshold: rule for the image thresholds: a number, or `quantile:q`, `sigma:k`, `fpr:p` or `max` of the scores
            of validation normals.
        pixel_threshold: likewise, of their pixels.
        threshold_per: `category`, each image is compared with its own category's thresholds, or `all`, with those of
            all categories together.

    Raises:
        ValueError: a rule or a `threshold_per` that is none of these.
    """

    def __init__(
        self,
        threshold: str | float = "quantile:0.95",
        pixel_threshold: str | float = "quantile:0.995",
        threshold_per: str = "category",
    ) -> None:
        super().__init__()
        for rule in (threshold, pixel_threshold):
            parse_rule(rule)  # one that makes no sense fails here, not after the first epoch
        if threshold_per not in ("category", "all"):
            raise ValueError(f"threshold_per {threshold_per!r} is unknown: category or all")
        self.rule, self.pixel_rule, self.threshold_per = threshold, pixel_threshold, threshold_per
        self.calibrated = Thresholds()
        self.normal_pixels: PixelHistogram | None = None
        self.test_pixels: PixelHistogram | None = None
        self.validation_scores: list[ScoredImage] = []
        self.predictions: list[TestedImage] = []
        self.results: Results | None = None

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds that decide, by `threshold_per`; a checkpoint holds those of both ways."""
        return self.calibrated if self.threshold_per == "category" else Thresholds(self.calibrated.pooled)

    def on_train_start(self) -> None:
        """A resumed run goes on with the learning rates of its config, not with those that the checkpoint brought."""
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"]

    def get_extra_state(self) -> dict[str, Any]:
        """Thresholds for the checkpoint: a buffer would have to know the number of categories before it is loaded."""
        return self.calibrated.state()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take them from a checkpoint."""
        self.calibrated = Thresholds.from_state(state)

    @property
    def categories(self) -> list[str]:
        """The data module's categories; a batch's `category` is a place in this list."""
        return self.trainer.datamodule.categories  # type: ignore[attr-defined]

    def score(self, batch: Batch) -> Scores:
        """Score a batch; an image's scores depend on nothing but the image and the weights."""
        raise NotImplementedError

    def describe(self) -> list[str]:
        """Lines for the result table that say what was trained."""
        return []

    def facts(self) -> dict[str, Any]:
        """What belongs into a result's file besides the metrics, by name."""
        return {}

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self.validation_scores = []
        self.normal_pixels = PixelHistogram(len(self.categories)).to(self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> Scores:
        """Collect scores of normals and of pasted defects, and the pixels of normals."""
        scores = self.score(batch)
        if not all_finite(scores).all():  # before the pixels, which would be refused without advice
            raise UserError(f"scores of validation images are not finite in epoch {self.current_epoch}: {DIVERGED}")
        columns = *(batch[key].tolist() for key in ("index", "category", "label")), scores["image"].tolist()
        self.validation_scores += map(ScoredImage, *columns)
        normal = batch["label"] == 0
        pixel = scores["pixel"][normal]
        if len(pixel):
            assert self.normal_pixels is not None
            self.normal_pixels.update(pixel, torch.zeros_like(pixel, dtype=torch.bool), batch["category"][normal])
        return scores

    def on_validation_epoch_end(self) -> None:
        """Calibrate the thresholds and log `val/auroc`, from the scores of all processes."""
        rows = gather_rows(self.validation_scores)
        score = torch.tensor([row.score for row in rows], dtype=torch.float64)
        label = torch.tensor([row.label for row in rows])
        category = torch.tensor([row.category for row in rows])
        assert self.normal_pixels is not None
        self.calibrated = calibrate_all(
            *(score[label == 0], category[label == 0], self.normal_pixels),
            *(self.categories, self.rule, self.pixel_rule),
        )
        means = {f"val/score_{name}": score[label == i].mean() for i, name in enumerate(("normal", "pseudo_anomaly"))}
        self.log("val/auroc", mean_auroc(score, label, category), prog_bar=True)
        self.log_dict(means)  # like it, the same on all processes: nothing to sync

    def on_test_epoch_start(self) -> None:
        """Start one pixel histogram a category."""
        self.predictions = []
        self.test_pixels = PixelHistogram(len(self.categories)).to(self.device)

    def test_step(self, batch: Batch, batch_idx: int) -> Scores:
        """Collect predictions and count pixels."""
        scores = self.score(batch)
        if not (finite := all_finite(scores)).all():
            records = self.trainer.datamodule.records("test")  # type: ignore[attr-defined]
            refuse_non_finite([records[i] for i in batch["index"].tolist()], finite)
        self.predictions += self.predict_batch(batch, scores)
        assert self.test_pixels is not None
        self.test_pixels.update(scores["pixel"], batch["mask"], batch["category"])
        return scores

    def on_test_epoch_end(self) -> None:
        """Compute every result from all processes' predictions; a callback or the entry point writes them."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self.predictions = gather_rows(self.predictions)
        assert self.test_pixels is not None
        self.results = summarise(
            [data.records("test")[row.index] for row in self.predictions],
            torch.tensor([row.prediction.score for row in self.predictions], dtype=torch.float64),
            self.thresholds,
            self.test_pixels,
            data.categories,
        )
        self.log_dict({f"test/{name}": value for name, value in self.results.mean.items()})

    def predict_batch(self, batch: Batch, scores: Scores) -> list[TestedImage]:
        """Turn a batch's scores into predictions beside the truth."""
        used = [self.thresholds.of(self.categories[i]) for i in batch["category"].tolist()]
        level = scores["pixel"].new_tensor([one.pixel for one in used])[:, None, None]
        masks = (scores["pixel"] > level).cpu().numpy()  # (B, H, W)
        predictions = [
            Prediction(score, one.image, one.pixel, one.source, float(mask.mean()), bounding_boxes(mask))
            for score, one, mask in zip(scores["image"].tolist(), used, masks, strict=True)
        ]
        columns = (batch[key].tolist() for key in ("index", "category", "label"))
        return [TestedImage(*row) for row in zip(*columns, predictions, strict=True)]


DIVERGED = "the training has diverged; try a smaller model.optimizer.lr or trainer.precision=32-true"


def all_finite(scores: Scores) -> Tensor:
    """Which images of a batch have finite scores only (B,); maps are judged in float32, as they are counted."""
    return scores["image"].isfinite() & scores["pixel"].float().isfinite().flatten(1).all(1)


def mean_auroc(score: Tensor, label: Tensor, category: Tensor) -> float:
    """Mean AUROC of the categories that have both labels: their scores may differ in scale. (N,) each -> 0..1."""
    parts = [(score[category == one], label[category == one]) for one in category.unique()]
    return fmean(auroc(*part) for part in parts if part[1].unique().numel() == 2)


class Indexed(Protocol):
    """A row that says which image it is of."""

    @property
    def index(self) -> int:
        """The image's index in its split."""


Row = TypeVar("Row", bound=Indexed)


def gather_rows(rows: list[Row]) -> list[Row]:
    """All processes' rows in the order of their indices, each index once."""
    if dist.is_available() and dist.is_initialized():
        parts: list[list[Row]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(parts, rows)
        rows = [row for part in parts for row in part]
    return list({row.index: row for row in sorted(rows, key=lambda row: row.index)}.values())


class EMA(nn.Module):
    """Exponential moving average of a network's weights (Polyak 1992), kept beside it in the checkpoint.

    The first update copies them.

    Args:
        network: the network that is trained.
        decay: share of the old average that a step keeps, such as 0.999.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        if not 0 < decay < 1:
            raise ValueError(f"ema {decay} must lie between 0 and 1")
        self.averaged = AveragedModel(network).requires_grad_(False)
        self.follow, self.begun = get_ema_multi_avg_fn(decay), False

    def update(self, network: nn.Module) -> None:
        """Take the network's present weights into the average.

        Not by AveragedModel's own way, which asks a tensor on the device how often it was called: at each step the host
        would wait for the GPU.
        """
        if not self.begun:  # in this process
            self.begun = bool(self.averaged.n_averaged > 0)
        mine, theirs = ([p.detach() for p in one.parameters()] for one in (self.network, network))
        if self.begun:
            self.follow(mine, theirs, None)
        else:
            torch._foreach_copy_(mine, theirs)
            self.begun = True
        self.averaged.n_averaged += 1

    @property
    def network(self) -> nn.Module:
        """The averaged network."""
        return self.averaged.module
