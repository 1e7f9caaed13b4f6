"""Sweep folders: many runs, each in a folder of its own, and one table of them all.

runs/<sweep>/
    sweep.json         the command's words, and the config that all jobs start from
    results.csv        a row a job, rewritten after each of them (see sweep_table.py)
    sweep.log          what the launcher or the sweeper stumbled over, if one did
    <job>/             a run folder (see runs.py), named by what the sweep varies; besides a run's files
        job.json       number and overrides of the job
        error.txt      why it failed, if it did: one line
"""

import hashlib
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from adlight.cli import launchers
from adlight.cli import main as cli
from adlight.cli.sweep_table import OBJECTIVE, print_table, read_job, read_table, write_table
from adlight.runs import config as configs
from adlight.runs.files import append_traceback, rank
from adlight.runs.folder import RunFolder
from adlight.runs.sweep_folder import SweepFolder
from adlight.types import UserError

NOT_COMPARED = ("resume", "resume_sweep", "run_dir")  # they differ between the first time and the next
OURS = ("resume_sweep=", "hydra.sweep.dir=", "hydra.output_subdir=", "hydra.job.config.override_dirname.")

current: SweepFolder | None = None  # this process's sweep, once Hydra has begun it


def job_name(overrides: Sequence[str], fixed: Sequence[str]) -> str:
    """Name a job's folder by what the sweep varies: `depth-e2d4_mask_ratio-0.75`, in [A-Za-z0-9._-] only.

    Args:
        overrides: all of the job's overrides.
        fixed: keys that are the same for all jobs of the sweep.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = {one.key_or_group: one.get_value_element_as_str() for one in parsed if one.key_or_group not in fixed}
    last = [re.split(r"[./]", key)[-1] for key in values]
    short = len(set(last)) == len(last)
    words = sorted(f"{name if short else key}-{value}" for name, (key, value) in zip(last, values.items(), strict=True))
    name = "_".join(words) or "job"
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    return (
        name if plain == name and len(name) <= 120 else f"{plain[:110]}-{hashlib.sha1(name.encode()).hexdigest()[:8]}"
    )


OmegaConf.register_new_resolver("job_name", job_name, replace=True)


def is_sweep() -> bool:
    """Whether this process does a job of a multirun."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def job_command() -> str:
    """The command that does this job alone."""
    hydra = HydraConfig.get()
    chosen = [f"{group}={hydra.runtime.choices[group]}" for group in ("model", "dataset")]  # by sweep=<name>, perhaps
    words = [word for word in hydra.overrides.task if not word.startswith(("resume_sweep=", "sweep=", *OURS))]
    return shlex.join(["python", "-m", "adlight.train", *chosen, *words])


def prepared(argv: list[str]) -> list[str]:
    """Add what a multirun needs to the words of its command line.

    Hydra must not write a job's config, as it would write over that of an earlier job before anyone could compare;
    and names of folders leave out what is the same for all jobs.
    """
    sweep = SweepFolder(cli.value_of(argv, "hydra.sweep.dir") or "")
    varied = sweep.note()["varied"] if sweep.is_sweep else []
    words, last = ["--multirun"], {}  # the flag first, wherever it stood
    for word, is_override in zip(argv, cli.overrides(argv), strict=True):
        if not is_override or word.startswith("hydra."):
            words += [word] if word not in ("-m", "--multirun") else []
            continue
        (one,) = OverridesParser.create().parse_overrides([word])
        last[one.key_or_group] = one, len(words)  # the last word on a setting counts
        words.append(word)
    fixed = []
    for key, (one, place) in last.items():
        if not one.is_sweep_override() and key in varied:  # one more job of a sweep that goes on, not another sweep
            words[place] = f"{one.get_key_element()}=choice({one.get_value_element_as_str()})"
        elif not one.is_sweep_override():
            fixed.append(f"'{key}'")
    fixed_keys = ",".join(fixed)
    return [*words, "hydra.output_subdir=null", f"hydra.job.config.override_dirname.exclude_keys=[{fixed_keys}]"]


def without_sweep(argv: list[str]) -> list[str]:
    """A command line whose config is only to be shown: without -m and what it would sweep, which has no one value."""
    words = []
    for word, is_override in zip(argv, cli.overrides(argv), strict=True):
        if is_override and OverridesParser.create().parse_overrides([word])[0].is_sweep_override():
            continue
        words += [word] if word not in ("-m", "--multirun") else []
    return words


class Begin(Callback):
    """Hydra calls this before the first job of a multirun, in the process that starts the others."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a folder that holds another sweep, or this one unless it is to go on; else note what begins."""
        global current
        folder = SweepFolder(str(config.hydra.sweep.dir))
        try:
            launchers.check(config)
            begin_sweep(folder, config)
            if config.resume_sweep:
                repeat_trials(config.hydra.sweeper)
        except UserError as error:
            cli.stop(f"error: {error}", 2)  # Hydra makes a warning of an exception here
        except Exception as error:  # of Optuna and its storage
            cli.stop(f"error: {folder} cannot go on: {type(error).__name__}: {cli.first_line(error)}", 2)
        current = folder


def begin_sweep(folder: SweepFolder, config: DictConfig) -> None:
    """Write `sweep.json`, or compare with the one that is there.

    Raises:
        UserError: the folder holds a sweep and nobody asked to go on with it, or one of another config, or none.
    """
    plain = comparable(config)
    if folder.is_sweep:
        if not config.resume_sweep:
            raise UserError(
                f"{folder} holds a sweep already: go on with it by resume_sweep=true, or choose another hydra.sweep.dir"
            )
        change = difference(folder.note()["config"], plain)
        if change:
            raise UserError(f"{folder} holds a sweep with other settings ({change}): choose another hydra.sweep.dir")
    elif config.resume_sweep and not folder.is_empty:
        raise UserError(f"{folder} holds no sweep: sweep.json is missing")
    elif config.resume_sweep and not cli.value_of(list(config.hydra.overrides.hydra), "hydra.sweep.dir"):
        raise UserError("resume_sweep=true does not say which: name the sweep's folder by hydra.sweep.dir=<the sweep>")
    words = [word for word in sys.argv[1:] if not word.startswith(OURS)]
    parsed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    last = {one.key_or_group: one.is_sweep_override() for one in parsed}
    varied = [key for key, sweeps in last.items() if sweeps]
    varied += [key for key in config.hydra.sweeper.params or {} if key not in last]  # others the command line has fixed
    folder.write_note(words, varied, plain)


def repeat_trials(sweeper: DictConfig) -> None:
    """Have a search begin with the trials in which it was killed, which Optuna would take for running for ever."""
    if not isinstance(sweeper.get("storage"), str):
        return
    import optuna

    try:
        study = optuna.load_study(study_name=sweeper.study_name, storage=sweeper.storage)
    except KeyError:  # killed before there was a study
        return
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)  # the same parameters, so the same job's folder: it goes on there


def comparable(config: DictConfig) -> dict[str, Any]:
    """What two configs are compared by: plain values, interpolations as they are written."""
    return {key: value for key, value in configs.to_dict(config).items() if key not in (*NOT_COMPARED, "hydra")}


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Name the first setting in which two configs differ; nothing if there is none."""
    old, new = configs.flatten(before), configs.flatten(now)
    for path in sorted(old.keys() | new.keys()):
        if old.get(path) != new.get(path):
            return f"{path} was {old.get(path)!r} and is {new.get(path)!r} now"
    return ""


def run(task: Callable[[DictConfig], Any], config: DictConfig) -> float | None:
    """Do a job of a sweep unless it is done; go on with it if it was begun. -> `val/auroc`, or None if it failed.

    Whatever goes wrong in it is written into its folder, and the other jobs go on.

    Args:
        task: trains in `config.run_dir`; goes on from its checkpoint if `config.resume` is set.
        config: the job's config.
    """
    hydra = HydraConfig.get()
    folder = RunFolder(hydra.runtime.output_dir)
    try:
        with folder.lock():
            state = begin_job(folder, config)
            if state == "finished":
                print(f"job {hydra.job.num} ({folder.path.name}) is finished: skipped", flush=True)
            else:
                config.resume = str(folder) if state == "unfinished" else None
                with cli.dashboard_finished():  # here the job's error is still to be seen
                    task(config)
        return read_job(folder).get(OBJECTIVE)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt() from error  # the sweep goes on by another command than its job
    except Exception as error:
        fail(folder, error)
        return None
    finally:
        if rank() == 0:
            write_table(SweepFolder(hydra.sweep.dir))


def begin_job(folder: RunFolder, config: DictConfig) -> str:
    """Write a job's config, number and overrides, or compare them with what is there.

    Returns:
        `new`, `unfinished` (there is a checkpoint to go on from) or `finished`.

    Raises:
        UserError: the folder is another job's.
    """
    hydra = HydraConfig.get()
    if hydra.output_subdir is not None:
        raise UserError("start a multirun by -m or sweep=<name>")
    if folder.is_run:
        change = difference(comparable(folder.config()), comparable(config))
        if change:
            raise UserError(f"{folder} holds a job with other settings ({change}): choose another hydra.sweep.dir")
    if rank() == 0:
        if not folder.is_run:
            folder.write_hydra_files(config)
        overrides = [word for word in hydra.overrides.task if not word.startswith(OURS)]
        folder.write_job(hydra.job.num, overrides)
    if folder.is_finished:
        return "finished"
    return "unfinished" if folder.can_resume else "new"


def fail(folder: RunFolder, error: Exception) -> None:
    """Write why a job failed into its folder, and the whole traceback into its log."""
    job = HydraConfig.get().job
    log = folder.log
    line = cli.explain(error) or f"{type(error).__name__}: {cli.first_line(error)} (traceback in {log.name})"
    append_traceback(log, error)
    if rank() == 0:
        folder.write_failure(line)
        print(f"job {job.num} ({folder.path.name}) failed: {line}", flush=True)


def broken_off(error: Exception) -> int:
    """Say what ended this process's sweep between its jobs: a launcher's or a sweeper's error. -> the exit code.

    Raises:
        Exception: the error itself, if no sweep was begun.
    """
    if current is None:
        raise error
    log = current.log
    append_traceback(log, error)
    print(
        f"error: the sweep was broken off: {type(error).__name__}: {cli.first_line(error)} (traceback in {log})",
        file=sys.stderr,
    )
    return 2


def end(code: int | str | None) -> int | str | None:
    """Print what has become of this process's sweep, if it began one. -> its exit code: 2 unless all jobs finished.

    Args:
        code: what the process would end with.
    """
    global current
    sweep, current = current, None
    if sweep is None:
        return code
    write_table(sweep)
    print_table(sweep)
    missing = [row for row in read_table(sweep) if row["status"] != "finished"]
    for row in missing:
        print(f"error: job {row['job']} ({row['name']}): {row.get('error', 'unfinished')}", file=sys.stderr)
    if code or missing:
        print(f"finished jobs and epochs are kept. Go on with: {go_on(sweep)}", file=sys.stderr, flush=True)
    return code or (2 if missing else 0)


def go_on(sweep: SweepFolder) -> str:
    """The command that continues a sweep, to be pasted into a shell."""
    words = sweep.note()["words"]
    plain = re.fullmatch(r"[\w./-]+", str(sweep), re.ASCII)
    folder = f"hydra.sweep.dir={sweep}" if plain else cli.quoted("hydra.sweep.dir", sweep.path)
    return shlex.join(["python", "-m", "adlight.train", *words, "resume_sweep=true", folder])
