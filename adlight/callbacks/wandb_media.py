"""Test results for W&B: score histograms, ROC curves, images with masks, tables of metrics and predictions."""

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from adlight.callbacks.panels import Example, Panels
from adlight.detection.module import AnomalyModule
from adlight.metrics.image import roc_curve
from adlight.runs.tables import PREDICTIONS, prediction_rows
from adlight.types import Record

COUNTER = "generator_steps"  # the x-axis of the training curves of a module that logs it
BINS = 50


class WandbMedia(pl.Callback):
    """Send the results of a test to W&B, and its panels to W&B and TensorBoard, if the run has these loggers.

    `Panels` must come before it among the callbacks. It sends:

    * `scores/<category>/{normal,anomalous}`: histograms over the same bins;
    * `roc`: a curve per category;
    * `cases/<category>`: images with the true and predicted masks as overlays, and the predicted boxes;
    * `panels/<category>`: the picture with reconstructions and error maps;
    * `results`, `predictions`: the table of metrics and the rows of predictions.csv (W&B shows up to 10,000).
    """

    def __init__(self) -> None:
        self.counted = False

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make `COUNTER` the x-axis of the training curves, once a module has logged it."""
        if self.counted or COUNTER not in trainer.callback_metrics:
            return
        self.counted = True
        for logger in _loggers(trainer, WandbLogger):
            logger.experiment.define_metric(COUNTER)
            for name in trainer.callback_metrics:
                if name.startswith("train/"):
                    logger.experiment.define_metric(name, step_metric=COUNTER)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Send everything from the first process."""
        if not trainer.is_global_zero or not _loggers(trainer, (WandbLogger, TensorBoardLogger)):
            return
        assert isinstance(pl_module, AnomalyModule)
        records = pl_module.datamodule.records("test")
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        shown: dict[str, list[Example]] = {}
        for panels in (callback for callback in callbacks if isinstance(callback, Panels)):
            shown = panels.shown
            for category in shown:
                with Image.open(panels.path(category)) as picture:
                    log_picture(trainer, f"panels/{category}", np.asarray(picture.convert("RGB")))
        for logger in _loggers(trainer, WandbLogger):
            run = logger.experiment
            cases = {f"cases/{category}": [_case(e, records[e.index]) for e in shown[category]] for category in shown}
            run.log(_tables(pl_module, records) | _score_histograms(pl_module, records) | cases)
            if chart := _roc_chart(pl_module, records):
                run.log(chart)  # after the masks, which remove the entries of charts from wandb's config
            pooled = pl_module.calibration.pooled
            run.summary.update({"threshold": pooled.image, "pixel_threshold": pooled.pixel})


def log_picture(trainer: pl.Trainer, name: str, picture: np.ndarray) -> None:
    """Send a picture (H, W, 3) uint8 to all W&B and TensorBoard loggers from the first process."""
    logger: Logger
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [picture], step=trainer.global_step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, picture, trainer.global_step, dataformats="HWC")


def roc_corners(score: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners of the ROC curve of scores (N,) with labels 0/1 (N,), as W&B accepts at most 10,000 points."""
    fpr, tpr = (rate.numpy() for rate in roc_curve(torch.from_numpy(score), torch.from_numpy(label)))
    bends = np.abs(np.diff([fpr, tpr], 2)).max(0) > 1e-9  # equal consecutive steps form a straight line
    kept = np.concatenate([[True], bends, [True]])
    return fpr[kept], tpr[kept]


def _loggers(trainer: pl.Trainer, kind: Any) -> list[Any]:
    return [logger for logger in trainer.loggers if isinstance(logger, kind)]


def _tables(module: AnomalyModule, records: list[Record]) -> dict[str, Any]:
    import wandb

    assert module.results is not None
    rows = {**module.results.categories, "mean of categories": module.results.mean, "pooled": module.results.pooled}
    names = list(dict.fromkeys(name for metrics in rows.values() for name in metrics))
    results = [[title, *(metrics.get(name) for name in names)] for title, metrics in rows.items()]
    predictions = [list(row) for row in prediction_rows(records, module.predictions)]
    return {
        "results": wandb.Table(columns=["category", *names], data=results),
        "predictions": wandb.Table(columns=list(PREDICTIONS), data=predictions),
    }


def _scores_by_category(module: AnomalyModule, records: list[Record]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    pairs: dict[str, list[tuple[float, int]]] = {}
    for row in module.predictions:
        pairs.setdefault(records[row.index].category, []).append((row.prediction.score, row.label))
    return {name: (np.array([s for s, _ in rows]), np.array([y for _, y in rows])) for name, rows in pairs.items()}


def _score_histograms(module: AnomalyModule, records: list[Record]) -> dict[str, Any]:
    import wandb

    histograms = {}
    for category, (score, label) in _scores_by_category(module, records).items():
        edges = np.histogram_bin_edges(score, BINS)
        for value, name in enumerate(("normal", "anomalous")):
            if (label == value).any():
                counts = np.histogram(score[label == value], edges)
                histograms[f"scores/{category}/{name}"] = wandb.Histogram(np_histogram=counts)
    return histograms


def _roc_chart(module: AnomalyModule, records: list[Record]) -> dict[str, Any]:
    import wandb

    both = {name: pair for name, pair in _scores_by_category(module, records).items() if len(set(pair[1])) == 2}
    if not both:
        return {}
    curves = [roc_corners(*pair) for pair in both.values()]
    x, y = ([curve[i].tolist() for curve in curves] for i in (0, 1))
    return {"roc": wandb.plot.line_series(x, y, list(both), "ROC: true against false positive rate", "FPR")}


def _case(example: Example, record: Record) -> Any:
    import wandb

    prediction = example.prediction
    assert prediction.mask is not None
    decision = "anomalous" if prediction.anomalous else "normal"
    numbers = f"{prediction.score:.4g} (threshold {prediction.threshold:.4g})"
    masks = {"ground_truth": (example.true_mask, 1, "defect"), "prediction": (prediction.mask, 2, "found")}
    boxes = [
        {
            "position": dict(zip(("minX", "minY", "maxX", "maxY"), box, strict=True)),
            **{"class_id": 2, "domain": "pixel", "box_caption": "found"},
        }
        for box in prediction.boxes
    ]
    return wandb.Image(
        example.image,
        caption=f"{record.defect}, {record.path}: {decision}, {numbers}",
        masks={
            name: {"mask_data": mask.astype(np.uint8) * value, "class_labels": {0: "normal", value: word}}
            for name, (mask, value, word) in masks.items()
        },
        boxes={"prediction": {"box_data": boxes, "class_labels": {2: "found"}}},
    )
