"""A sweep around its jobs: which folder it may use, what ended it, and how to resume it."""

import sys
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from adlight.cli.arguments import value_of
from adlight.cli.errors import describe, explain
from adlight.cli.job import OURS
from adlight.cli.launchers import check_launcher
from adlight.cli.resume import resume_sweep_command
from adlight.cli.sweep_table import print_table, read_table, write_table
from adlight.runs.config import comparable, difference
from adlight.runs.files import append_traceback
from adlight.runs.sweep_folder import SweepFolder
from adlight.types import UserError

current: SweepFolder | None = None  # this process's sweep, once Hydra has begun it


class SweepCallback(Callback):
    """Hydra calls this before the first job of a multirun, in the process that starts the others."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a folder that holds another sweep, or this one unless it is resumed; else note what begins."""
        global current
        sweep = SweepFolder(str(config.hydra.sweep.dir))
        try:
            check_launcher(config)
            begin_sweep(sweep, config)
            if config.resume_sweep:
                requeue_trials(config.hydra.sweeper)
        except Exception as error:  # Hydra would make a warning of it; Optuna and its storage have their own
            line = explain(error) or f"{sweep} cannot be resumed: {describe(error)}"
            print(f"error: {line}", file=sys.stderr, flush=True)
            sys.exit(2)
        current = sweep


def begin_sweep(sweep: SweepFolder, config: DictConfig) -> None:
    """Note a sweep in its folder, or compare it with the one that is there.

    Raises:
        UserError: the folder holds a sweep that is not to be resumed, or one of another config, or none to resume.
    """
    if sweep.is_sweep:
        if not config.resume_sweep:
            raise UserError(
                f"{sweep} already holds a sweep: resume it with resume_sweep=true, or choose another hydra.sweep.dir"
            )
        if change := difference(sweep.note()["config"], config):
            raise UserError(f"{sweep} holds a sweep with other settings ({change}): choose another hydra.sweep.dir")
    elif config.resume_sweep and not value_of(list(config.hydra.overrides.hydra), "hydra.sweep.dir"):
        raise UserError("resume_sweep=true does not say which: name the sweep's folder by hydra.sweep.dir=<the sweep>")
    elif config.resume_sweep:
        raise UserError(f"hydra.sweep.dir={sweep} holds no sweep to resume: name its folder, or leave out resume_sweep")
    words = [word for word in sys.argv[1:] if not word.startswith(OURS)]
    parsed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    last = {one.key_or_group: one.is_sweep_override() for one in parsed}
    varied = [key for key, sweeps in last.items() if sweeps]
    varied += [key for key in config.hydra.sweeper.params or {} if key not in last]  # others the command line has fixed
    sweep.write_note(words, varied, comparable(config))


def requeue_trials(sweeper: DictConfig) -> None:
    """Make a search begin with the trials in which it was killed, which Optuna would consider running forever."""
    if not isinstance(sweeper.get("storage"), str):
        return
    import optuna

    try:
        study = optuna.load_study(study_name=sweeper.study_name, storage=sweeper.storage)
    except KeyError:  # killed before there was a study
        return
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)  # the same parameters, so the same job's folder, which is resumed


def report_crash(error: Exception) -> bool:
    """Report an error of a launcher or sweeper, between the jobs of this process's sweep. -> whether there is one."""
    if current is None:
        return False
    append_traceback(current.log, error)
    print(f"error: the sweep crashed: {describe(error)} (traceback in {current.log})", file=sys.stderr)
    return True


def finish(code: int | str | None) -> int | str | None:
    """Print the results of this process's sweep, if it began one. -> `code`, or 2 where a job has not finished."""
    global current
    sweep, current = current, None
    if sweep is None:
        return code
    write_table(sweep)
    print_table(sweep)
    missing = [row for row in read_table(sweep) if row["status"] != "finished"]
    for row in missing:
        print(f"error: job {row['job']} ({row['name']}): {row.get('error') or row['status']}", file=sys.stderr)
    if code or missing:
        advice = f"finished jobs and epochs are kept. Continue with: {resume_sweep_command(sweep)}"
        print(advice, file=sys.stderr, flush=True)
    return code or (2 if missing else 0)
