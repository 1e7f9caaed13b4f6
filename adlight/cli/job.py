"""A job of a sweep: the name of its folder, how it is run, skipped or resumed, and what happens when it fails."""

import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from adlight.cli.errors import describe, explain, filter_warnings, is_interruption
from adlight.cli.sweep import OWN_WORDS, write_table
from adlight.cli.words import to_override
from adlight.runs.config import difference, register_resolver
from adlight.runs.files import append_traceback, rank, read_number
from adlight.runs.find import SweepFolder
from adlight.runs.folder import RunFolder
from adlight.runs.log import copy_output
from adlight.runs.overrides import search_path
from adlight.runs.tables import OBJECTIVE
from adlight.types import UserError

FOLDER_VARIABLE = "ADLIGHT_JOB"  # environment variable that holds the run folder of a job with its own command
PATIENCE = 30  # seconds that this command may take to stop after Ctrl-C


def job_name(overrides: Sequence[str], varied: Mapping[str, bool]) -> str:
    """Name a job's folder by the keys that its sweep varies: `depth-e2d4_mask_ratio-0.75`, in [A-Za-z0-9._-]."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = {o.key_or_group: o.get_value_element_as_str() for o in parsed if varied.get(o.key_or_group, True)}
    short = {key: re.split(r"[./]", key)[-1] for key in values}
    if len(set(short.values())) < len(short):
        short = {key: key for key in values}
    name = "_".join(sorted(f"{short[key]}-{value}" for key, value in values.items())) or "job"
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    digest = hashlib.sha1(name.encode(errors="surrogateescape")).hexdigest()[:8]
    return name if plain == name and len(name) <= 120 else f"{plain[:110]}-{digest}"


register_resolver("job_name", lambda overrides, sweep: job_name(overrides, SweepFolder(sweep).note()["varied"]))


def is_job() -> bool:
    """Return whether this process runs a job of a multirun."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def lacking_settings(config: DictConfig) -> list[str]:
    """Find the settings of the sweep that this job's model or data set lacks, see `mark_partial_settings`."""
    choices, partial = HydraConfig.get().runtime.choices, config.partial_settings
    if not partial or isinstance(partial, ListConfig):  # a list in runs of earlier versions
        return []
    return [key for key, without in partial.items() if choices[key.partition(".")[0]] in without]


def job_words(config: DictConfig) -> list[str]:
    """Return the arguments of the command that repeats this job as a single run."""
    hydra = HydraConfig.get()
    chosen = [f"{group}={hydra.runtime.choices[group]}" for group in ("model", "dataset")]  # sweep=<name> may set them
    words = [word for word in hydra.overrides.task if not word.startswith(("sweep=", *OWN_WORDS))]
    omitted = {"partial_settings", *lacking_settings(config)}
    return [*search_path(), *chosen, *(word for word in words if word.lstrip("+").partition("=")[0] not in omitted)]


def run_job(task: Callable[[DictConfig], Any], config: DictConfig) -> float | None:
    """Run a job of a sweep unless it is finished, resuming it if possible. -> `val/auroc`, or None if it failed.

    `task` trains in `config.run_dir`, from its checkpoint if `config.resume` is set. If it fails, the error is written
    to the job's folder and the other jobs continue.
    """
    hydra = HydraConfig.get()
    run = RunFolder(hydra.runtime.output_dir)
    filter_warnings()  # a launcher's process has not done so
    try:
        config = _leave_out_lacking(config)
        with run.lock():
            _begin(run, config)
            if run.is_finished:
                print(f"job {hydra.job.num} ({run.path.name}) is finished: skipped", flush=True)
            elif needs_own_process(config.trainer):
                run_command(run, config)
            else:
                config.resume = str(run) if run.can_resume else None
                with finish_wandb(), copy_output(run.log):  # outside this function the error would be lost
                    task(config)
        return (run.read_results() or {}).get("validation", {}).get(OBJECTIVE)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt() from error  # drops the advice, which is for a single run
    except Exception as error:
        append_traceback(run.log, error)
        if rank() == 0:
            if run.job() is None:  # it failed before it began, and must be a row of the table
                _write_job(run)
            line = describe(error) + ("" if explain(error) else f" (traceback in {run.log.name})")
            run.write_failure(line)
            print(f"job {hydra.job.num} ({run.path.name}) failed: {line}", flush=True)
        return None
    finally:
        if rank() == 0:
            write_table(SweepFolder(hydra.sweep.dir))


def _leave_out_lacking(config: DictConfig) -> DictConfig:
    """Compose a job's config again without the settings that its model or data set lacks, and print them."""
    if not (lacking := lacking_settings(config)):
        return config
    hydra = HydraConfig.get()
    for key in lacking:
        choice = to_override(group := key.partition(".")[0], hydra.runtime.choices[group])
        print(f"{key}={OmegaConf.select(config, key)} is left out: {choice} has no such setting", flush=True)
    words = [word for word in hydra.overrides.task if word.lstrip("+").partition("=")[0] not in lacking]
    return compose("train", [*search_path(), *words])


def _begin(run: RunFolder, config: DictConfig) -> None:
    """Write a job's config, number and overrides; raise a UserError if the folder holds another job."""
    hydra = HydraConfig.get()
    if hydra.output_subdir is not None:
        raise UserError("start a multirun by -m or sweep=<name>")
    if run.is_run and (change := difference(run.read_config(), config)):
        raise UserError(f"{run} holds a job with other settings ({change}): choose another hydra.sweep.dir")
    if rank() == 0:
        if not run.is_run:
            run.write_composed(config, hydra.runtime.choices)
        _write_job(run)


def _write_job(run: RunFolder) -> None:
    hydra = HydraConfig.get()
    run.write_job(hydra.job.num, [word for word in hydra.overrides.task if not word.startswith(OWN_WORDS)])


def needs_own_process(trainer: DictConfig) -> bool:
    """Return whether Lightning may have to start more processes; under Slurm they exist already."""
    return not trainer.devices == trainer.num_nodes == 1 and read_number("SLURM_NTASKS") < 2


def run_command(run: RunFolder, config: DictConfig, relay: bool = False) -> None:
    """Run the present training as a command in a subprocess, so that Lightning can start processes for its devices.

    Lightning's ddp starts them by repeating the command line; here that would start the whole sweep or the user's
    script again. This process must hold the lock of the folder. With `relay`, the command's output goes through
    `print`, so that a notebook shows it.

    Raises:
        UserError: the training failed; the message says why.
    """
    words = [*job_words(config), to_override("hydra.run.dir", run.path), "hydra.output_subdir=null"]
    if run.can_resume:
        words = [to_override("resume", run.path)]
    if is_job():
        print(f"job {HydraConfig.get().job.num} ({run.path.name}) runs by its own command", flush=True)
        words.append(to_override("hydra.sweep.dir", HydraConfig.get().sweep.dir))  # W&B groups the jobs by it
    command, environment = [sys.executable, "-m", "adlight.train", *words], {**os.environ, FOLDER_VARIABLE: str(run)}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} if relay else {}
    with subprocess.Popen(command, env=environment, **output) as process:  # type: ignore[call-overload]
        try:
            for line in process.stdout or ():
                print(line, end="", flush=True)
            code = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)  # Ctrl-C in a terminal has already reached it
            try:
                process.wait(PATIENCE)
            finally:
                process.kill()
            raise
    if code:
        raise UserError(run.failure() or f"the job's command exited with {code}")


@contextmanager
def finish_wandb() -> Iterator[None]:
    """Finish the W&B run, if there is one, with an exit code: each job of a multirun has a W&B run of its own."""
    code = 1
    try:
        yield
        code = 0
    except BaseException as error:
        code = 130 if is_interruption(error) else 1 if explain(error) is None else 2
        raise
    finally:
        if "wandb" in sys.modules:
            sys.modules["wandb"].finish(exit_code=code)
