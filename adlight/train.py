"""Train and test a detector: `python -m adlight.train model=mae dataset=mvtec`."""

import os
import re
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from adlight.cli import main as cli
from adlight.cli import processes
from adlight.cli import sweep as sweeps
from adlight.runs import provenance
from adlight.runs.config import CONF
from adlight.runs.find import find_unfinished
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

    run, resumed, sweep = RunFolder(config.run_dir), bool(config.resume), sweeps.is_sweep()
    if resumed and not sweep:  # a sweep's job has the run's own config
        config = resumed_config(run)
    data, module, trainer = built(config)
    check(config, trainer)
    if sweep and processes.must_be_spawned(trainer):
        print(f"{trainer.world_size} devices in a sweep: the job runs in as many spawned processes", flush=True)
        processes.spawn(config, trainer.world_size)
        return {}
    last = run.last_checkpoint if resumed else None
    if last is not None:
        load_weights(module, last)  # Lightning's own words for a damaged or foreign file fill a screen
        if trainer.is_global_zero and not sweep:
            run.write_config(config)  # overrides are part of the run from now on
    elif giver := config.model.get("generator_from"):
        load_weights(module, RunFolder(giver).checkpoint("last"), GENERATOR)
        refuse_other_images(config, Path(giver))
    about = provenance.describe(config.seed) | ({"command": sweeps.job_command()} if sweep else {})
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
        if not cli.interrupted(error):
            raise
        raise KeyboardInterrupt(how_to_go_on(run)) from error
    except UserError as error:
        if "epochs" not in about:
            raise
        advice = "then go on with the sweep" if sweep else f"then: {go_on(run)}"
        raise UserError(f"{error}. The training is done and kept; mend this, {advice}") from error


def job(config: DictConfig) -> Any:
    """What Hydra runs: one training, or a job of a sweep."""
    return sweeps.run(train, config) if sweeps.is_sweep() else train(config)


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
    return None if value is None else float(value)


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
    if str(config.trainer.strategy).endswith(("_spawn", "_fork", "_notebook")):
        raise UserError(f"trainer.strategy={config.trainer.strategy}: use ddp, which a sweep spawns by itself")
    if config.trainer.num_nodes > 1 and processes.must_be_spawned(trainer):
        raise UserError("several nodes need Slurm: srun and trainer=slurm, or hydra/launcher=slurm for a sweep")


def resumed_config(run: RunFolder) -> DictConfig:
    """The run's own config with the command line's other overrides."""
    overrides = [word for word in HydraConfig.get().overrides.task if not word.startswith("resume=")]
    return run.config(overrides)


def how_to_go_on(run: RunFolder) -> str:
    """What to say after Ctrl-C."""
    if not run.can_resume:
        return f"No epoch was finished, so there is nothing to resume in {run}."
    return f"The state of the last finished epoch is saved. Go on with: {go_on(run)}"


def go_on(run: RunFolder) -> str:
    """The command that continues a run, to be pasted into a shell."""
    plain = re.fullmatch(r"[\w./-]+", str(run), re.ASCII)
    return f"python -m adlight.train {f'resume={run}' if plain else shlex.quote(cli.quoted('resume', run.path))}"


def arguments(argv: list[str]) -> list[str]:
    """Turn `resume=auto` or `resume=<run>` into the words that continue that run in its own folder.

    Raises:
        UserError: no such run, or `hydra.run.dir` names a folder that holds one already.
    """
    wanted, folder = cli.value_of(argv, "resume"), cli.value_of(argv, "hydra.run.dir")
    multirun = {"-m", "--multirun"} & set(argv) or cli.value_of(argv, "sweep") not in (None, "null")
    if cli.only_shows(argv):
        return sweeps.without_sweep(argv)  # Hydra does one thing at a time
    if wanted in (None, "null"):
        if not folder and not multirun and (step := slurm_step()):
            return slurm_arguments(argv, step)
        if folder and not multirun and RunFolder(folder).has_results:
            raise UserError(
                f"{folder} holds a run already: go on with it by resume={folder}, or choose another hydra.run.dir"
            )
        return sweeps.prepared(argv) if multirun else argv
    if multirun:
        raise UserError("resume= continues a single run; leave out -m, or go on with a sweep by resume_sweep=true")
    rest = [word for word in argv if not word.startswith("resume=")]
    if wanted == "auto":
        run = newest_unfinished(rest, folder)
        if run is None:
            print("resume=auto: no unfinished run with this config; a new one starts", flush=True)
            return rest
        flags = zip(rest, cli.overrides(rest), strict=True)
        rest = [word for word, is_override in flags if not is_override]  # the config is the run's own, word for word
    else:
        run = RunFolder(str(wanted))
        run.checkpoint("last")
    rest = [word for word in rest if not word.startswith("hydra.run.dir=")]
    return [*rest, cli.quoted("resume", run.path), cli.quoted("hydra.run.dir", run.path), "hydra.output_subdir=null"]


def slurm_step() -> str | None:
    """Name of the srun step that this process is one of several in; None if it is not.

    Raises:
        UserError: what Lightning needs to know is missing.
    """
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return None
    if "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise UserError("srun with several processes needs --ntasks-per-node, and trainer=slurm")
    return f"slurm-{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}"


def slurm_arguments(argv: list[str], step: str) -> list[str]:
    """Give all processes of an srun step one run folder: a new one, or the one it has left when it is queued again."""
    run = RunFolder(Path("runs") / step)
    words = [*argv, cli.quoted("hydra.run.dir", run.path)]
    begun = run.is_run and run.can_resume
    return [*words, cli.quoted("resume", run.path), "hydra.output_subdir=null"] if begun else words


def newest_unfinished(overrides: list[str], folder: str | None) -> RunFolder | None:
    """The newest unfinished run with the config that these overrides compose."""
    marked = zip(overrides, cli.overrides(overrides), strict=True)
    words = [word for word, is_override in marked if is_override and not word.startswith("hydra.")]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", words)
    folders = [Path(folder)] if folder else sorted(Path("runs").glob("*"))
    return find_unfinished(list(map(RunFolder, folders)), config)


def main() -> Any:
    """Entry point."""
    code: Any = 0
    try:
        cli.run(job, "train", arguments)
    except SystemExit as ending:
        code = ending.code
    except Exception as error:
        code = sweeps.broken_off(error)
    sys.exit(sweeps.end(code))


if __name__ == "__main__":
    main()
