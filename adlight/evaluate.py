"""Score a finished run again, without training: `python -m adlight.evaluate run=<folder> [overrides]`."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from adlight.cli import main as cli
from adlight.cli.arguments import OWN_OF_EVALUATE, evaluate_arguments, task_overrides
from adlight.runs import provenance
from adlight.runs.config import instantiate_node
from adlight.runs.folder import RunFolder
from adlight.runs.restore import load_weights
from adlight.types import UserError

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from adlight.data.datamodule import AnomalyDataModule
    from adlight.detection.module import AnomalyModule

CHANGES_SCORES = ("model", "dataset", "calibration.image", "calibration.pixel", "trainer=", "trainer.precision")


def evaluate(config: DictConfig) -> dict[str, float]:
    """Test a run's checkpoint and write the results into a folder of their own. -> every metric, by name.

    Without overrides the stored threshold is used and the run's numbers come out again. Overrides of the model, the
    data or a threshold may change what a normal score is, so the thresholds are then calibrated anew, on the held-out
    normal images.
    """
    from adlight.reports.tables import print_defects

    run = RunFolder(config.run)
    overrides = task_overrides(*OWN_OF_EVALUATE)
    saved = run.config(overrides)
    OmegaConf.set_struct(saved, False)
    saved.model.objective = None  # nothing is trained: no LPIPS weights are needed
    saved.callbacks = {name: node for name, node in (saved.get("callbacks") or {}).items() if name != "checkpoints"}
    asked = any(word.startswith("logger=") for word in overrides)  # a dashboard has a run for each evaluation
    saved.logger = {name: node for name, node in saved.logger.items() if asked and name != "csv"}
    data, module, trainer = built(saved)
    path = run.checkpoint(config.ckpt or saved.ckpt)
    about = provenance.describe(saved.seed) | {"run": str(run)}
    log_config(trainer, saved)
    calibrate = any(word.startswith(CHANGES_SCORES) for word in overrides)
    metrics = test(RunFolder(saved.run_dir), path, trainer, module, data, about, calibrate)
    if trainer.is_global_zero and module.results is not None:
        print_defects(module.results)
    return metrics


def built(config: DictConfig) -> tuple["AnomalyDataModule", "AnomalyModule", "pl.Trainer"]:
    """Build what a config describes, under its seed: its nodes are constructor calls."""
    import pytorch_lightning as pl  # here and not above: --help must not wait for torch
    import torch

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # after the import, which sets its own level
    torch.set_float32_matmul_precision("high")  # GPUs may use TF32 where 32 bits are asked for; CPUs do not change
    for name, value, least in (("seed", config.seed, 0), ("trainer.max_epochs", config.trainer.max_epochs, 1)):
        if not isinstance(value, int) or not least <= value < 2**32:
            raise UserError(f"{name}={value} is no whole number from {least} up to 2^32 - 1")
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = instantiate_node(config.dataset)
    module = instantiate_node(config.model)
    module.calibration = instantiate_node(config.calibration)
    unwanted = () if config.trainer.enable_progress_bar else ("progress",)  # Lightning refuses one beside that
    parts = {
        group: [
            instantiate_node(node) for name, node in (config.get(group) or {}).items() if node and name not in unwanted
        ]
        for group in ("callbacks", "logger")
    }
    trainer = instantiate_node(config.trainer, callbacks=parts["callbacks"], logger=parts["logger"] or False)
    return data, module, trainer


def log_config(trainer: "pl.Trainer", config: DictConfig) -> None:
    """Give the whole config, interpolations resolved, to the loggers."""
    for logger in trainer.loggers:
        logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]


def test(
    folder: RunFolder,
    checkpoint: Path,
    trainer: "pl.Trainer",
    module: "AnomalyModule",
    data: "AnomalyDataModule",
    about: dict[str, Any],
    calibrate: bool = False,
) -> dict[str, float]:
    """Test a checkpoint, write the results into a folder and print the table. -> every metric, by name."""
    from adlight.reports.tables import print_results

    load_weights(module, checkpoint)
    if calibrate:
        about |= {"validation": dict(trainer.validate(module, data, verbose=False)[0])}
    trainer.test(module, data, verbose=False)
    assert module.results is not None
    if trainer.is_global_zero:
        about |= module.metadata()
        about |= {"checkpoint": str(checkpoint), "protocol": data.source.protocol, "skipped": data.skipped()}
        folder.write_results(module, data.records("test"), about)
        print_results(module.results, *remarks(folder, module, data))
    return dict(module.results.mean)


def remarks(folder: RunFolder, module: "AnomalyModule", data: "AnomalyDataModule") -> tuple[str, list[str]]:
    """How the thresholds came about, and the lines below the table."""
    notes = [f"data: {data.source.protocol}", *module.describe()]
    if data.skipped():
        notes.append(f"skipped {len(data.skipped())} unreadable image(s), the first: {data.skipped()[0]}")
    if folder.panels.is_dir():
        notes.append(f"pictures: {folder.panels}")
    files = ", ".join(map(str, folder.result_paths))
    assert module.results is not None
    return module.calibration.describe(list(module.results.categories)), [*notes, f"numbers: {files}"]


def main() -> None:
    """Entry point."""
    cli.run(evaluate, "evaluate", evaluate_arguments)


if __name__ == "__main__":
    main()
