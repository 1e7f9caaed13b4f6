"""What every detector does after training: score, calibrate a threshold on validation normals, test."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple, Protocol, TypeVar

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from adlight.metrics.pixels import PixelHistogram
from adlight.metrics.ranking import auroc, calibrate, parse_rule
from adlight.metrics.results import Results, summarise
from adlight.scoring.maps import regions
from adlight.types import Batch, Scores, UserError


class Prediction(NamedTuple):
    """The three answers for one image: anomalous or not (score against threshold), where (boxes), how much (area)."""

    number: int  # the image's index in its split
    category: int  # its place in the data module's categories
    label: int
    score: float
    area: float  # share of the pixels above the pixel threshold, 0..1
    boxes: list[tuple[int, int, int, int]]  # left, top, right, bottom of their regions, in pixels


class AnomalyModule(pl.LightningModule):
    """Base of the detectors. A subclass writes `training_step`, `configure_optimizers` and `score`.

    Validation calibrates: the threshold is set from the scores of held-out normal images, the pixel threshold from
    their pixels; both are buffers, so a checkpoint carries them. `val/auroc` compares those normals with copies that
    have pasted defects, as a mean over categories: it is what checkpoints and searches look at. The test split
    steers nothing.

    Args:
        threshold: rule for the image threshold: a number, or `quantile:q`, `sigma:k`, `fpr:p` or `max` of the scores
            of validation normals.
        pixel_threshold: likewise, of their pixels.

    Raises:
        ValueError: a rule that is none of these.
    """

    threshold: Tensor
    pixel_threshold: Tensor

    def __init__(
        self, threshold: str | float = "quantile:0.95", pixel_threshold: str | float = "quantile:0.995"
    ) -> None:
        super().__init__()
        for rule in (threshold, pixel_threshold):
            parse_rule(rule)  # one that makes no sense fails here, not after the first epoch
        self.rule, self.pixel_rule = threshold, pixel_threshold
        self.register_buffer("threshold", torch.tensor(float("nan"), dtype=torch.float64))
        self.register_buffer("pixel_threshold", torch.tensor(float("nan"), dtype=torch.float64))
        self.normal_pixels = PixelHistogram(1)
        self.test_pixels: PixelHistogram | None = None
        self.predictions: list[Prediction] = []
        self.results: Results | None = None

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
        self.predictions = []
        self.normal_pixels.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> Scores:
        """Collect scores of normals and of pasted defects, and the pixels of normals."""
        scores = self.score(batch)
        if not torch.isfinite(scores["image"]).all():  # before the pixels, which would be refused without advice
            raise UserError(f"scores of validation images are not finite in epoch {self.current_epoch}: {DIVERGED}")
        self.predictions += self.predict_batch(batch, scores, with_regions=False)
        normal = scores["pixel"][batch["label"] == 0]
        if len(normal):
            self.normal_pixels.update(
                normal, torch.zeros_like(normal, dtype=torch.bool), normal.new_zeros(len(normal)).long()
            )
        return scores

    def on_validation_epoch_end(self) -> None:
        """Calibrate both thresholds and log `val/auroc`, from the scores of all processes."""
        rows = gathered(self.predictions)
        score = torch.tensor([row.score for row in rows], dtype=torch.float64)
        label = torch.tensor([row.label for row in rows])
        self.threshold.fill_(calibrate(score[label == 0], self.rule))
        self.pixel_threshold.fill_(self.normal_pixels.histogram().threshold(self.pixel_rule))
        category = torch.tensor([row.category for row in rows])
        means = {f"val/score_{name}": score[label == i].mean() for i, name in enumerate(("normal", "pasted"))}
        self.log("val/auroc", mean_auroc(score, label, category), prog_bar=True)
        self.log_dict(means)  # like it, the same on all processes: nothing to sync

    def on_test_epoch_start(self) -> None:
        """Start one pixel histogram a category."""
        self.predictions = []
        self.test_pixels = PixelHistogram(len(self.trainer.datamodule.categories)).to(self.device)  # type: ignore[attr-defined]

    def test_step(self, batch: Batch, batch_idx: int) -> Scores:
        """Collect predictions and count pixels."""
        scores = self.score(batch)
        self.predictions += self.predict_batch(batch, scores)
        assert self.test_pixels is not None
        self.test_pixels.update(scores["pixel"], batch["mask"], batch["category"])
        return scores

    def on_test_epoch_end(self) -> None:
        """Compute every result from all processes' predictions; a callback or the entry point writes them."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self.predictions = gathered(self.predictions)
        assert self.test_pixels is not None
        self.results = summarise(
            [data.records("test")[row.number] for row in self.predictions],
            torch.tensor([row.score for row in self.predictions], dtype=torch.float64),
            float(self.threshold),
            float(self.pixel_threshold),
            self.test_pixels,
            data.categories,
        )
        self.log_dict({f"test/{name}": value for name, value in self.results.mean.items()})

    def predict_batch(self, batch: Batch, scores: Scores, with_regions: bool = True) -> list[Prediction]:
        """Turn a batch's scores into predictions."""
        found: Sequence[tuple[float, Any]] = [(0.0, [])] * len(scores["image"])
        if with_regions:
            mask = (scores["pixel"] > self.pixel_threshold).cpu().numpy()
            found = [(float(one.mean()), regions(one)) for one in mask]
        numbers, categories, labels = (batch[key].tolist() for key in ("index", "category", "label"))
        rows = zip(numbers, categories, labels, scores["image"].tolist(), found, strict=True)
        return [Prediction(*row[:4], *row[4]) for row in rows]


DIVERGED = "the training has diverged; try a smaller model.optimizer.lr or trainer.precision=32-true"


def mean_auroc(score: Tensor, label: Tensor, category: Tensor) -> float:
    """Mean AUROC of the categories that have both labels: their scores may differ in scale. (N,) each -> 0..1."""
    parts = [(score[category == one], label[category == one]) for one in category.unique()]
    return fmean(auroc(*part) for part in parts if part[1].unique().numel() == 2)


class Numbered(Protocol):
    """A row that says which image it is of."""

    @property
    def number(self) -> int:
        """The image's index in its split."""


Row = TypeVar("Row", bound=Numbered)


def gathered(rows: list[Row]) -> list[Row]:
    """All processes' rows in the order of their indices, each index once."""
    if dist.is_available() and dist.is_initialized():
        parts: list[list[Row]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(parts, rows)
        rows = [row for part in parts for row in part]
    return list({row.number: row for row in sorted(rows, key=lambda row: row.number)}.values())


class Averaged(nn.Module):
    """Exponential moving average of a network's weights (Polyak 1992), kept beside it in the checkpoint.

    Args:
        network: the network that is trained.
        decay: share of the old average that a step keeps, such as 0.999.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        if not 0 < decay < 1:
            raise ValueError(f"ema {decay} must lie between 0 and 1")
        self.averaged = torch.optim.swa_utils.AveragedModel(
            network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
        ).requires_grad_(False)

    def update(self, network: nn.Module) -> None:
        """Take the network's present weights into the average."""
        self.averaged.update_parameters(network)

    @property
    def network(self) -> nn.Module:
        """The averaged network."""
        return self.averaged.module
