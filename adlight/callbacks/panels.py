"""Pictures of a test: the best and the worst cases of each category, on one colour scale a category."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from adlight.detection.module import AnomalyModule, TestedImage
from adlight.detection.pictures import colour_ceiling
from adlight.types import Batch, Prediction, Record, Scores


@dataclass(frozen=True)
class Case:
    """What a panel shows of one image, on the CPU."""

    index: int  # in the test split
    prediction: Prediction
    image: Tensor  # (C, H, W) in [0, 1]
    reconstruction: Tensor  # (C, H, W)
    pixel: Tensor  # (H, W)
    mask: Tensor  # (H, W) bool


class Panels(pl.Callback):
    """Writes `<category>.png`: input, reconstruction, error map, true mask and decision, a row an image.

    Shown are, of each label, the highest and the lowest scores: with the threshold drawn between them these are the
    clearest cases and the mistakes. Memory holds only those, whatever the size of the test.

    Args:
        folder: where the pictures go.
        cases: how many images of each kind.

    Attributes:
        shown: after a test, on the first process, what each category's picture shows.
    """

    def __init__(self, folder: str, cases: int = 3) -> None:
        self.folder, self.cases = Path(folder), cases
        self.kept: dict[tuple[int, int], list[Case]] = {}
        self.shown: dict[str, list[Case]] = {}

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the last test."""
        self.kept, self.shown = {}, {}

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the batch's images that are among the highest or lowest of their category and label."""
        assert isinstance(pl_module, AnomalyModule)
        rows = pl_module.predictions[-len(batch["index"]) :]
        for i, row in enumerate(rows):
            kept = self.kept.setdefault((int(batch["category"][i]), row.label), [])
            scores = [case.prediction.score for case in kept]  # highest first
            score = row.prediction.score
            if len(kept) < 2 * self.cases or score > scores[self.cases - 1] or score < scores[self.cases]:
                kept[:] = self.extremes([*kept, case_of(row, batch, outputs, i)])

    def extremes(self, cases: list[Case]) -> list[Case]:
        """The highest and the lowest scores among some cases, highest first; ties in the order of the test."""
        cases = sorted(cases, key=lambda case: (-case.prediction.score, case.index))
        return cases if len(cases) <= 2 * self.cases else cases[: self.cases] + cases[-self.cases :]

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw, on one process, what all of them kept."""
        assert isinstance(pl_module, AnomalyModule)
        parts: list[dict[tuple[int, int], list[Case]]] = [self.kept]
        if dist.is_available() and dist.is_initialized():
            parts = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(parts, self.kept)
        if not trainer.is_global_zero:
            return
        data = pl_module.datamodule
        self.folder.mkdir(parents=True, exist_ok=True)
        for number, category in enumerate(data.categories):
            shown = [
                case
                for label in (1, 0)
                for case in self.extremes([case for part in parts for case in part.get((number, label), [])])
            ]
            if shown:
                self.shown[category] = shown
                used = pl_module.calibration.of(category)
                records = [data.records("test")[case.index] for case in shown]
                figure = draw(shown, records, used.image, used.pixel, colour_ceiling(used.pixel))
                figure.suptitle(category, fontsize=11)
                figure.savefig(self.folder / f"{category}.png", dpi=100)


def case_of(row: TestedImage, batch: Batch, scores: Scores, i: int) -> Case:
    """Copy image i of a batch to the CPU."""
    tensors = (batch["image"][i], scores["reconstruction"][i], scores["pixel"][i], batch["mask"][i])
    return Case(row.index, row.prediction, *(tensor.detach().cpu().clone() for tensor in tensors))


def draw(cases: list[Case], records: list[Record], threshold: float, pixel_threshold: float, ceiling: float) -> Figure:
    """Draw a row a case; `ceiling` is the error that the colour scale ends at."""
    titles = ["input", "reconstruction", f"error, 0 to {ceiling:.3g}", "true mask", "decision"]
    figure = Figure(figsize=(11, 2.4 * len(cases) + 0.3), layout="constrained")
    axes = figure.subplots(len(cases), 5, squeeze=False)
    for row, (case, record) in enumerate(zip(cases, records, strict=True)):
        image = case.image.expand(3, -1, -1).permute(1, 2, 0)
        reconstruction = case.reconstruction.expand(3, -1, -1).permute(1, 2, 0).clamp(0, 1)
        found = case.pixel > pixel_threshold
        marked = torch.where(found[..., None], image * 0.4 + torch.tensor([0.6, 0.0, 0.0]), image)
        axes[row, 0].imshow(image.numpy())
        axes[row, 1].imshow(reconstruction.numpy())
        axes[row, 2].imshow(case.pixel.numpy(), cmap="inferno", vmin=0, vmax=ceiling)
        axes[row, 3].imshow(case.mask.numpy(), cmap="gray", vmin=0, vmax=1)
        axes[row, 4].imshow(marked.numpy())
        for left, top, right, bottom in case.prediction.boxes:
            box = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor="yellow")
            axes[row, 4].add_patch(box)
        anomalous = case.prediction.score > threshold
        right_or_wrong = "right" if anomalous == bool(record.label) else "WRONG"
        axes[row, 0].set_ylabel(f"{record.defect}\n{Path(record.path).name}", fontsize=8)
        axes[row, 4].set_xlabel(
            f"{'anomalous' if anomalous else 'normal'} ({right_or_wrong})\n{case.prediction.score:.4g} "
            f"{'>' if anomalous else '<='} {threshold:.4g}",
            fontsize=8,
            color="black" if right_or_wrong == "right" else "red",
        )
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    return figure
