"""Train and test a detector: `adlight train model=mae dataset=mvtec`."""

import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from adlight.api import TrainProgram
from adlight.cli import main as cli
from adlight.cli.arguments import task_overrides, train_arguments
from adlight.cli.errors import is_interruption
from adlight.cli.job import is_job, job_words, run_job
from adlight.cli.resume import add_advice, resume_advice, use_advice
from adlight.runs import provenance, training
from adlight.runs.config import instantiate_node, require_nodes
from adlight.runs.folder import RunFolder
from adlight.runs.tables import OBJECTIVE
from adlight.runs.weights import load_weights
from adlight.types import UserError

if TYPE_CHECKING:  # torch takes seconds: not for --help
    import pytorch_lightning as pl

    from adlight.data.datamodule import AnomalyDataModule
    from adlight.detection.module import AnomalyModule


def train(config: DictConfig) -> dict[str, float]:
    """Train and test the configured detector in its run folder. -> every metric, by name."""
    run, sweep, resumed = RunFolder(config.run_dir), is_job(), bool(config.resume)
    require_nodes(config, "checkpoint")
    if resumed:
        config = training.resume_config(run, () if sweep else task_overrides("resume"))
    else:
        training.prepare_config(config, run)
    data, module, trainer = build(config)
    training.check_trainer(config, trainer)
    training.check_data(data, module.calibration, run)
    stages = training.plan_stages(config, run, data, module, trainer, resumed)
    alone = provenance.command_line(job_words(config)) if sweep else None
    metadata = provenance.describe(config.seed, alone or (provenance.resumed_command(run) if resumed else None))
    images = () if resumed else provenance.list_trained(data)
    begin = training.begin_once(run, metadata, config if resumed and not sweep else None, images)
    if not resumed:
        begin()
    provenance.log_config(trainer, config)
    try:
        trainer, trained = fit(config, stages, data, trainer, begin)
        metadata |= trained
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        metrics |= test(run, run.checkpoint(config.ckpt), trainer, module, data, metadata, begin)
        if trainer.is_global_zero and not sweep:
            print(use_advice(run))
        return metrics
    except (KeyboardInterrupt, SystemExit) as error:
        if not is_interruption(error):
            raise
        raise KeyboardInterrupt(resume_advice(run)) from error
    except (UserError, OSError) as error:
        add_advice(error, run, "epochs" in metadata, sweep)
        raise


def build(config: DictConfig) -> tuple["AnomalyDataModule", "AnomalyModule", "pl.Trainer"]:
    """Build data, module and trainer from a config, whose nodes are constructor calls, under its seed."""
    import pytorch_lightning as pl  # takes seconds: not for --help
    import torch

    from adlight.runs.checks import check_settings

    check_settings(config)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # after the import, which sets its own level
    torch.set_float32_matmul_precision("high")  # lets GPUs use TF32 for 32 bits; no effect on CPUs
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = instantiate_node(config.dataset)
    module = instantiate_node(config.model)
    module.calibration = instantiate_node(config.calibration)
    if not module.takes_padding and (data.frame.keep_shape or data.roi):
        raise UserError(f"{type(module).__name__} scores whole images: set dataset.keep_shape=false dataset.roi=null")
    unwanted = () if config.trainer.enable_progress_bar else ("progress",)  # Lightning refuses the callback then
    callbacks, loggers = (
        [instantiate_node(node) for name, node in (config.get(group) or {}).items() if node and name not in unwanted]
        for group in ("callbacks", "logger")
    )
    return data, module, make_trainer(config, callbacks, loggers, enable_checkpointing=False)


def make_trainer(config: DictConfig, callbacks: list[Any], loggers: list[Any], **settings: Any) -> "pl.Trainer":
    """Build a Trainer; `settings` override the config's."""
    return instantiate_node(config.trainer, callbacks=callbacks, logger=loggers or False, **settings)


def fit(
    config: DictConfig,
    stages: list[training.Stage],
    data: "AnomalyDataModule",
    observers: "pl.Trainer",
    begin: Callable[[], None] = lambda: None,
) -> tuple["pl.Trainer", dict[str, Any]]:
    """Fit the stages in turn, each with its own Trainer, which has the callbacks and loggers of `observers`.

    `begin` is called before the first checkpoint is written.

    Returns:
        The last Trainer, and metadata of the training for the results.
    """
    every, seconds = config.trainer.check_val_every_n_epoch or 1, 0.0
    for stage in stages:
        is_detector = stage is stages[-1]
        checkpoint = instantiate_node(config.checkpoint, last=stage.last, best=stage.best, seconds=seconds)
        checkpoint.begin = begin
        trainer = make_trainer(
            config,
            [*observers.callbacks, checkpoint],  # type: ignore[attr-defined]
            [logger if is_detector else getattr(logger, "pretraining", logger) for logger in observers.loggers],
            max_epochs=stage.epochs,
            check_val_every_n_epoch=max(1, min(every, stage.epochs)),  # thresholds come from a validation
            limit_val_batches=config.trainer.limit_val_batches if is_detector else 0,
        )
        if stage.epochs:
            trainer.fit(stage.module, data, ckpt_path=stage.last if stage.resumed else None, weights_only=True)
        else:
            trainer.validate(stage.module, data, verbose=False)
        data.first_epoch, seconds = data.first_epoch + trainer.current_epoch, checkpoint.seconds
    validation = {OBJECTIVE: checkpoint.best_value if math.isfinite(checkpoint.best_value) else None}
    return trainer, {"epochs": data.first_epoch, "seconds": round(seconds, 1), "validation": validation}


def test(
    run: RunFolder,
    checkpoint: Path,
    trainer: "pl.Trainer",
    module: "AnomalyModule",
    data: "AnomalyDataModule",
    metadata: dict[str, Any],
    begin: Callable[[], None] = lambda: None,
    calibrate: bool = False,
) -> dict[str, float]:
    """Test a checkpoint, call `begin`, write the results and print the table. -> every metric, by name."""
    from adlight.reports.tables import print_results

    load_weights(module, checkpoint)
    if calibrate:
        metadata |= {"validation": dict(trainer.validate(module, data, verbose=False)[0])}
    trainer.test(module, data, verbose=False)
    assert module.results is not None
    if trainer.is_global_zero:
        metadata |= module.metadata()
        metadata |= {"checkpoint": str(checkpoint), "protocol": data.protocol(len(module.predictions))}
        metadata["skipped"] = data.skipped()
        begin()
        run.write_results(module, data.records("test"), metadata)
        thresholds = module.calibration.describe(list(module.results.categories))
        print_results(module.results, thresholds, footnotes(run, module, data))
    return dict(module.results.mean)


def footnotes(run: RunFolder, module: "AnomalyModule", data: "AnomalyDataModule") -> list[str]:
    """Describe the data, the detector and the places of the results, in lines below the table."""
    notes = [f"data: {line}" for line in data.describe(len(module.predictions))] + module.describe()
    pictures = [f"pictures: {run.panels}"] if run.panels.is_dir() else []
    numbers = f"numbers: {', '.join(path.name for path in run.result_paths)} in {run.path}"
    return [*notes, *module.classifier.describe(), *pictures, numbers]


def run_or_job(config: DictConfig) -> Any:
    """Run a single training, or a job of a sweep."""
    return run_job(train, config) if is_job() else cli.run_logged(train, config, records=True)


def main() -> None:
    """Run as a program."""
    cli.run(run_or_job, "train", train_arguments)


sys.modules[__name__].__class__ = TrainProgram  # makes the module callable: `adlight.train(...)`
if __name__ == "__main__":
    main()
