"""Train and test a detector: `python -m adlight.train model=mae dataset=mvtec`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from adlight.cli import main as cli
from adlight.cli.arguments import resume_command, task_overrides, train_arguments
from adlight.cli.errors import interrupted
from adlight.cli.job import is_job, job_command, run_job
from adlight.cli.launchers import check_strategy
from adlight.runs import provenance
from adlight.runs.folder import RunFolder
from adlight.runs.restore import load_weights
from adlight.types import UserError

if TYPE_CHECKING:
    import pytorch_lightning as pl


SPLIT = [  # what chooses the training images
    *("source", "category", "seed", "val_fraction", "train_limit"),
    *("normal", "normal_dir", "test_normal_dir", "normal_test_fraction"),
]
GENERATOR = ("generator", "critic", "ema.")  # tensors that `model.generator_from` brings


def train(config: DictConfig) -> dict[str, float]:
    """Fit and test what `config` describes, in its run folder. -> every metric, by name."""
    from adlight.evaluate import built, log_config, test

    run, resumed, sweep = RunFolder(config.run_dir), bool(config.resume), is_job()
    if resumed and not sweep:  # a sweep's job has the run's own config
        config = run.config(task_overrides("resume"))
    data, module, trainer = built(config)
    check(config, trainer)
    last = run.last_checkpoint if resumed else None
    if last is not None:
        load_weights(module, last)  # Lightning's own words for a damaged or foreign file fill a screen
        if trainer.is_global_zero and not sweep:
            run.write_config(config)  # overrides are part of the run from now on
    elif giver := config.model.get("generator_from"):
        load_weights(module, RunFolder(giver).checkpoint("last"), GENERATOR)
        refuse_other_images(config, Path(giver))
    about = provenance.describe(config.seed) | ({"command": job_command()} if sweep else {})
    run.begin(about)
    log_config(trainer, config)
    started = time.perf_counter()
    try:
        trainer.fit(module, data, ckpt_path=last, weights_only=True)
        seconds = time.perf_counter() - started + getattr(trainer.checkpoint_callback, "earlier_seconds", 0.0)
        about |= {"epochs": trainer.current_epoch, "seconds": round(seconds, 1)}
        validation = {name: float(value) for name, value in trainer.callback_metrics.items()}
        about |= {"validation": {"val/auroc": best_auroc(trainer)}}
        return validation | test(run, run.checkpoint(config.ckpt), trainer, module, data, about)
    except (KeyboardInterrupt, SystemExit) as error:
        if not interrupted(error):
            raise
        raise KeyboardInterrupt(resume_advice(run)) from error
    except UserError as error:
        if "epochs" not in about:
            raise
        advice = "then resume the sweep" if sweep else f"then: {resume_command(run)}"
        raise UserError(f"{error}. The training is done and kept; fix this, {advice}") from error


def run_or_job(config: DictConfig) -> Any:
    """Do what Hydra runs: one training, or a job of a sweep."""
    return run_job(train, config) if is_job() else train(config)


def refuse_other_images(config: DictConfig, giver: Path) -> None:
    """A generator must come from a run that chose its training images alike; where they lie, may differ.

    Raises:
        UserError: its GAN may have been trained on images that are held out here for thresholds or test.
    """
    mine, its = config.dataset, RunFolder(giver).config().dataset
    for key in SPLIT:
        if mine.get(key) != its.get(key):
            raise UserError(
                f"dataset.{key} is {mine.get(key)}, and {its.get(key)} in model.generator_from={giver}: its GAN may "
                "know the images that are held out here"
            )


def best_auroc(trainer: "pl.Trainer") -> float | None:
    """Validation AUROC of the best epoch, or of the last one where no callback keeps the best."""
    value = getattr(trainer.checkpoint_callback, "best", trainer.callback_metrics.get("val/auroc"))
    return None if value in (None, float("-inf")) else float(value)


def check(config: DictConfig, trainer: "pl.Trainer") -> None:
    """Find out before the training what would make its end useless.

    Raises:
        UserError: no checkpoint of the wanted name would be there, no validation, or a strategy that cannot work.
    """
    if config.ckpt not in ("best", "last") and not Path(config.ckpt).is_file():
        raise UserError(f"ckpt={config.ckpt} is neither best nor last nor an existing file")
    every = config.trainer.check_val_every_n_epoch
    epochs = config.trainer.max_epochs + (config.model.get("encoder_epochs") or 0)
    if trainer.limit_val_batches == 0 or every > epochs:
        raise UserError(
            "the thresholds come from a validation, and there would be none: lower trainer.check_val_every_n_epoch "
            f"(now {every}) or raise trainer.limit_val_batches"
        )
    check_strategy(trainer, str(config.trainer.strategy))


def resume_advice(run: RunFolder) -> str:
    """Say how to go on after Ctrl-C."""
    if not run.can_resume:
        return f"No epoch was finished, so there is nothing to resume in {run}."
    return f"The state of the last finished epoch is saved. Continue with: {resume_command(run)}"


def main() -> None:
    """Entry point."""
    cli.run(run_or_job, "train", train_arguments)


if __name__ == "__main__":
    main()
