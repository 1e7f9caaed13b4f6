"""One job of a sweep: the name of its folder, how it is run, skipped or resumed, and what happens when it fails."""

import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from adlight.cli.arguments import quote
from adlight.cli.errors import describe, explain, interrupted
from adlight.cli.mixed import LIST, lacking_settings, leave_out_lacking_settings
from adlight.cli.sweep_table import OBJECTIVE, write_table
from adlight.runs.config import difference
from adlight.runs.files import append_traceback, rank, read_number
from adlight.runs.folder import RunFolder
from adlight.runs.log import copy_output
from adlight.runs.overrides import search_path
from adlight.runs.provenance import command_line
from adlight.runs.sweep_folder import SweepFolder
from adlight.types import UserError

OURS = ("resume_sweep=", "hydra.sweep.dir=", "hydra.output_subdir=", "hydra.job.config.override_dirname.")
FOLDER = "ADLIGHT_JOB"  # environment variable by which a job's own command knows its run folder
PATIENCE = 30  # seconds in which a job's command must stop after Ctrl-C


def job_name(overrides: Sequence[str], fixed: Sequence[str]) -> str:
    """Name a job's folder by its overrides but for `fixed` keys: `depth-e2d4_mask_ratio-0.75`, in [A-Za-z0-9._-]."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = {one.key_or_group: one.get_value_element_as_str() for one in parsed if one.key_or_group not in fixed}
    last = [re.split(r"[./]", key)[-1] for key in values]
    short = len(set(last)) == len(last)
    words = sorted(f"{name if short else key}-{value}" for name, (key, value) in zip(last, values.items(), strict=True))
    name = "_".join(words) or "job"
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    digest = hashlib.sha1(name.encode(errors="surrogateescape")).hexdigest()[:8]
    return name if plain == name and len(name) <= 120 else f"{plain[:110]}-{digest}"


OmegaConf.register_new_resolver("job_name", job_name, replace=True)


def is_job() -> bool:
    """Tell whether this process runs a job of a multirun."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def job_words() -> list[str]:
    """List the words of the command that runs this job alone."""
    hydra = HydraConfig.get()
    chosen = [f"{group}={hydra.runtime.choices[group]}" for group in ("model", "dataset")]  # by sweep=<name>, perhaps
    words = [word for word in hydra.overrides.task if not word.startswith(("sweep=", f"{LIST}=", *OURS))]
    lacking = lacking_settings(hydra.overrides.task)
    return [*search_path(), *chosen, *(word for word in words if word.lstrip("+").partition("=")[0] not in lacking)]


def job_command() -> str:
    """Write the command that runs this job alone, to be pasted into a shell."""
    return command_line(job_words())


def run_job(task: Callable[[DictConfig], Any], config: DictConfig) -> float | None:
    """Run a job of a sweep unless it is finished; resume it if it was begun. -> `val/auroc`, or None if it failed.

    `task` trains in `config.run_dir`, from its checkpoint if `config.resume` is set. An error is written into the job's
    folder, and the other jobs continue.
    """
    hydra = HydraConfig.get()
    run = RunFolder(hydra.runtime.output_dir)
    try:
        leave_out_lacking_settings(config)
        with run.lock():
            _begin(run, config)
            if run.is_finished:
                print(f"job {hydra.job.num} ({run.path.name}) is finished: skipped", flush=True)
            elif needs_own_process(config.trainer):
                run_command(run)
            else:
                config.resume = str(run) if run.can_resume else None
                with finish_wandb(), copy_output(run.log):  # the error is lost further out
                    task(config)
        return (run.read_results() or {}).get("validation", {}).get(OBJECTIVE)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt() from error  # the sweep is resumed by another command than its job
    except Exception as error:
        append_traceback(run.log, error)
        if rank() == 0:
            line = describe(error) + ("" if explain(error) else f" (traceback in {run.log.name})")
            run.write_failure(line)
            print(f"job {hydra.job.num} ({run.path.name}) failed: {line}", flush=True)
        return None
    finally:
        if rank() == 0:
            write_table(SweepFolder(hydra.sweep.dir))


def _begin(run: RunFolder, config: DictConfig) -> None:
    """Write a job's config, number and overrides, or compare them with what is there.

    Raises:
        UserError: the folder is another job's.
    """
    hydra = HydraConfig.get()
    if hydra.output_subdir is not None:
        raise UserError("start a multirun by -m or sweep=<name>")
    if run.is_run and (change := difference(run.read_config(), config)):
        raise UserError(f"{run} holds a job with other settings ({change}): choose another hydra.sweep.dir")
    if rank() == 0:
        if not run.is_run:
            run.write_hydra_files(config)
        run.write_job(hydra.job.num, [word for word in hydra.overrides.task if not word.startswith(OURS)])


def needs_own_process(trainer: DictConfig) -> bool:
    """Tell whether Lightning may have to start processes for a job, which Slurm has not done."""
    return not trainer.devices == trainer.num_nodes == 1 and read_number("SLURM_NTASKS") < 2


def run_command(run: RunFolder, relay: bool = False) -> None:
    """Run the present training by its own command, so that Lightning can start the processes of its devices.

    Lightning's ddp starts them by repeating the command line, which here would start the whole sweep, or the user's
    script, in each.

    Args:
        run: the folder to train in, which this process holds.
        relay: print what the command prints by `print`, which a notebook shows.

    Raises:
        UserError: why the job failed.
    """
    words = [*job_words(), quote("hydra.run.dir", run.path), "hydra.output_subdir=null"]
    if run.can_resume:
        words = [quote("resume", run.path)]
    if is_job():
        print(f"job {HydraConfig.get().job.num} ({run.path.name}) runs by its own command", flush=True)
        words.append(quote("hydra.sweep.dir", HydraConfig.get().sweep.dir))  # by it W&B groups the jobs
    command, environment = [sys.executable, "-m", "adlight.train", *words], {**os.environ, FOLDER: str(run)}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} if relay else {}
    with subprocess.Popen(command, env=environment, **output) as process:  # type: ignore[call-overload]
        try:
            for line in process.stdout or ():
                print(line, end="", flush=True)
            code = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)  # from a terminal Ctrl-C has reached it already
            try:
                process.wait(PATIENCE)
            finally:
                process.kill()
            raise
    if code:
        raise UserError(run.failure() or f"the job's command ended with {code}")


def note_failure(error: BaseException) -> None:
    """Write why a job's own command fails into its folder; the first of its processes to fail counts."""
    if FOLDER not in os.environ:
        return
    run = RunFolder(os.environ[FOLDER])
    if explain(error) is None:
        append_traceback(run.log, error)
    if run.failure() is None:
        run.write_failure((f"process {rank()}: " if rank() else "") + describe(error))


@contextmanager
def finish_wandb() -> Iterator[None]:
    """Close a job's run of W&B, if there is one: each job of a multirun has its own, and failed ones are marked."""
    code = 1
    try:
        yield
        code = 0
    except BaseException as error:
        code = 130 if interrupted(error) else 1 if explain(error) is None else 2
        raise
    finally:
        if "wandb" in sys.modules:
            sys.modules["wandb"].finish(exit_code=code)
