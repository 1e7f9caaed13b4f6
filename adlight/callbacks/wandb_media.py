"""What a dashboard shows of a test: score histograms, ROC curves, images with their masks, all predictions."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from adlight.callbacks.panels import Case, Panels
from adlight.detection.module import AnomalyModule
from adlight.metrics.image import roc_curve
from adlight.metrics.thresholds import Threshold
from adlight.runs.tables import PREDICTIONS, prediction_rows
from adlight.types import Record

COUNTER = "generator_steps"  # a module that counts them has its training curves drawn against them
BINS = 50


class Dashboard(pl.Callback):
    """Sends a test's results to W&B and its pictures to TensorBoard too; without such a logger it does nothing.

    It shows what the module and `Panels` hold after a test (the order in `callbacks` matters: panels come first):

    * `scores/<category>/{normal,anomalous}`: histograms over the same bins;
    * `roc`: a curve a category;
    * `cases/<category>`: images with true and predicted mask as overlays and the predicted boxes;
    * `panels/<category>`: the picture with reconstructions and error maps;
    * `results`, `predictions`: the table of metrics and the rows of predictions.csv (W&B shows up to 10,000).
    """

    def __init__(self) -> None:
        self.counted = False

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the training curves against the generator's steps, once it is known that somebody counts them."""
        if self.counted or COUNTER not in trainer.callback_metrics:
            return
        self.counted = True
        for logger in loggers(trainer, WandbLogger):
            logger.experiment.define_metric(COUNTER)
            for name in trainer.callback_metrics:
                if name.startswith("train/"):
                    logger.experiment.define_metric(name, step_metric=COUNTER)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Send everything, from the process that has gathered it."""
        if not trainer.is_global_zero or not loggers(trainer, (WandbLogger, TensorBoardLogger)):
            return
        assert isinstance(pl_module, AnomalyModule)
        records = pl_module.datamodule.records("test")
        cases: dict[str, Any] = {}
        for panels in (one for one in trainer.callbacks if isinstance(one, Panels)):  # type: ignore[attr-defined]
            cases = panels.shown
            for category in cases:
                with Image.open(panels.folder / f"{category}.png") as picture:
                    log_picture(trainer, f"panels/{category}", np.asarray(picture.convert("RGB")))
        for logger in loggers(trainer, WandbLogger):
            run = logger.experiment
            run.log(tables(pl_module, records) | histograms(pl_module, records) | overlays(cases, records, pl_module))
            if chart := roc_chart(pl_module, records):
                run.log(chart)  # after the masks, which write wandb's config anew without the charts' part of it
            pooled = pl_module.calibration.pooled
            run.summary.update({"threshold": pooled.image, "pixel_threshold": pooled.pixel})


def loggers(trainer: pl.Trainer, kind: Any) -> list[Any]:
    """The trainer's loggers of a kind."""
    return [logger for logger in trainer.loggers if isinstance(logger, kind)]


def log_picture(trainer: pl.Trainer, name: str, picture: np.ndarray) -> None:
    """Send a picture (H, W, 3) uint8 to every logger that shows pictures; the first process does it."""
    logger: Logger
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [picture], step=trainer.global_step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, picture, trainer.global_step, dataformats="HWC")


def tables(module: AnomalyModule, records: list[Record]) -> dict[str, Any]:
    """The tables of metrics (a row a category, their mean, everything pooled) and of predictions."""
    import wandb

    assert module.results is not None
    found = module.results
    rows = {**found.categories, "mean of categories": found.mean, "pooled": found.pooled}
    names = list(dict.fromkeys(name for metrics in rows.values() for name in metrics))
    results = [[title, *(metrics.get(name) for name in names)] for title, metrics in rows.items()]
    predictions = prediction_rows(records, module.predictions)
    return {
        "results": wandb.Table(columns=["category", *names], data=results),
        "predictions": wandb.Table(columns=list(PREDICTIONS), data=[list(row) for row in predictions]),
    }


def scores_by_category(module: AnomalyModule, records: list[Record]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scores (N,) float64 and labels (N,) of each category's images."""
    found: dict[str, list[tuple[float, int]]] = {}
    for row in module.predictions:
        found.setdefault(records[row.index].category, []).append((row.prediction.score, row.label))
    return {name: (np.array([s for s, _ in rows]), np.array([y for _, y in rows])) for name, rows in found.items()}


def histograms(module: AnomalyModule, records: list[Record]) -> dict[str, Any]:
    """Histograms of the scores of each category's normal and anomalous images, over the same bins."""
    import wandb

    found = {}
    for category, (score, label) in scores_by_category(module, records).items():
        edges = np.histogram_bin_edges(score, BINS)
        for which, name in enumerate(("normal", "anomalous")):
            if (label == which).any():
                counts = np.histogram(score[label == which], edges)
                found[f"scores/{category}/{name}"] = wandb.Histogram(np_histogram=counts)
    return found


def roc_chart(module: AnomalyModule, records: list[Record]) -> dict[str, Any]:
    """One chart with a ROC curve for each category that has both labels."""
    import wandb

    both = {name: pair for name, pair in scores_by_category(module, records).items() if len(set(pair[1])) == 2}
    if not both:
        return {}
    curves = [roc(*pair) for pair in both.values()]
    x, y = ([curve[i].tolist() for curve in curves] for i in (0, 1))
    return {"roc": wandb.plot.line_series(x, y, list(both), "ROC: true against false positive rate", "FPR")}


def roc(score: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the ROC curve of scores (N,) with labels 0/1 (N,), as W&B takes 10,000 points at most."""
    fpr, tpr = (rate.numpy() for rate in roc_curve(torch.from_numpy(score), torch.from_numpy(label)))
    bends = np.abs(np.diff([fpr, tpr], 2)).max(0) > 1e-9  # equal steps make one straight line
    kept = np.concatenate([[True], bends, [True]])
    return fpr[kept], tpr[kept]


def overlays(shown: dict[str, list[Case]], records: list[Record], module: AnomalyModule) -> dict[str, Any]:
    """The images of the panels, each with two masks and the predicted boxes that W&B draws over it."""
    return {
        f"cases/{category}": [overlay(case, records[case.index], module.calibration.of(category)) for case in cases]
        for category, cases in shown.items()
    }


def overlay(case: Case, record: Record, used: Threshold) -> Any:
    """One image of the dashboard with its overlays."""
    import wandb

    image = (case.image.expand(3, -1, -1).permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()
    masks = {"ground_truth": (case.mask, 1, "defect"), "prediction": (case.pixel > used.pixel, 2, "found")}
    said = "anomalous" if case.prediction.score > used.image else "normal"
    return wandb.Image(
        image,
        caption=f"{record.defect}, {record.path}: {said}, {case.prediction.score:.4g} (threshold {used.image:.4g})",
        masks={
            name: {"mask_data": mask.byte().numpy() * value, "class_labels": {0: "normal", value: word}}
            for name, (mask, value, word) in masks.items()
        },
        boxes={"prediction": {"box_data": [*box_data(case.prediction.boxes)], "class_labels": {2: "found"}}},
    )


def box_data(boxes: Iterable[tuple[int, int, int, int]]) -> Iterable[dict[str, Any]]:
    """Give boxes (left, top, right, bottom) in W&B's words."""
    for box in boxes:
        position = dict(zip(("minX", "minY", "maxX", "maxY"), box, strict=True))
        yield {"position": position, "class_id": 2, "domain": "pixel", "box_caption": "found"}
