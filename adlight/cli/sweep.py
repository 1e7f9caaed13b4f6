"""A sweep as a whole: checks of its launcher and folder, its table, its end, and how to resume it."""

import shlex
import sys
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from adlight.cli.errors import describe, explain
from adlight.cli.resume import resume_sweep_command
from adlight.cli.words import value_of
from adlight.reports.rows import read_results
from adlight.runs.config import comparable, difference, register_resolver
from adlight.runs.files import append_traceback
from adlight.runs.find import SweepFolder
from adlight.runs.folder import RunFolder
from adlight.runs.tables import OBJECTIVE, to_csv
from adlight.types import UserError

OWN_WORDS = ("resume_sweep=", "hydra.sweep.dir=", "hydra.output_subdir=")
METRICS = ("auroc", "ap", "f1_max", "f1_calibrated", "pixel_auroc", "aupro")
COLUMNS = ("job", "name", "status", OBJECTIVE, *METRICS, "epochs", "seconds", "error", "log", "overrides", "folder")

current: SweepFolder | None = None  # the sweep that this process has started


def gpus_per_node(accelerator: str, devices: int | str) -> int | str | None:
    """Return how many GPUs a Slurm job needs on each node: one per process, none for `trainer=cpu`."""
    return devices if accelerator in ("auto", "cuda", "gpu") else None


register_resolver("gpus_per_node", gpus_per_node)


class SweepCallback(Callback):
    """Hydra calls this before the first job of a multirun, in the process that starts the jobs."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Begin or resume the sweep; exit if its folder holds another sweep."""
        global current
        sweep = SweepFolder(str(config.hydra.sweep.dir))
        try:
            check_launcher(config)
            begin_sweep(sweep, config)
            if config.resume_sweep:
                requeue_trials(config.hydra.sweeper)
        except Exception as error:  # Hydra would only warn; Optuna and its storage raise errors of their own
            line = explain(error) or f"{sweep} cannot be resumed: {describe(error)}"
            print(f"error: {line}", file=sys.stderr, flush=True)
            sys.exit(2)
        current = sweep


def check_launcher(config: DictConfig) -> None:
    """Raise a UserError if Slurm cannot run this training."""
    choices, trainer = config.hydra.runtime.choices, config.trainer
    launcher = choices.get("hydra/launcher")
    if launcher == "slurm" and choices.get("trainer") == "slurm":  # it would ask the login node for its number of tasks
        raise UserError(
            "trainer=slurm is for srun; hydra/launcher=slurm starts the processes itself: leave out trainer=slurm and "
            "set trainer.devices=<number per node> trainer.num_nodes=<number> trainer.strategy=ddp"
        )
    if launcher == "slurm" and not (isinstance(trainer.devices, int) and trainer.devices > 0):
        raise UserError(
            f"trainer.devices={trainer.devices}: hydra/launcher=slurm starts one process per device and must know how "
            "many: trainer.devices=<number>"
        )


def begin_sweep(sweep: SweepFolder, config: DictConfig) -> None:
    """Record a sweep in its folder; raise a UserError if the folder holds another sweep, or none to resume."""
    if sweep.is_sweep:
        if not config.resume_sweep:
            raise UserError(
                f"{sweep} already holds a sweep: resume it with resume_sweep=true, or choose another hydra.sweep.dir"
            )
        if change := difference(sweep.note()["config"], config):
            raise UserError(f"{sweep} holds a sweep with other settings ({change}): choose another hydra.sweep.dir")
    elif config.resume_sweep and not value_of(list(config.hydra.overrides.hydra), "hydra.sweep.dir"):
        raise UserError("resume_sweep=true needs the folder of the sweep: hydra.sweep.dir=<the sweep>")
    elif config.resume_sweep:
        raise UserError(f"hydra.sweep.dir={sweep} holds no sweep to resume: name its folder, or leave out resume_sweep")
    words = [word for word in sys.argv[1:] if not word.startswith(OWN_WORDS)]
    overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    varied = dict.fromkeys(map(str, config.hydra.sweeper.params or {}), True)
    varied |= {override.key_or_group: override.is_sweep_override() for override in overrides}  # may fix one of these
    sweep.write_note(words, varied, comparable(config))


def requeue_trials(sweeper: DictConfig) -> None:
    """Make a resumed search begin with the trials that were running when it was killed."""
    if not isinstance(sweeper.get("storage"), str):
        return
    import optuna

    try:
        study = optuna.load_study(study_name=sweeper.study_name, storage=sweeper.storage)
    except KeyError:  # killed before Optuna created the study
        return
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)  # the same parameters lead to the same job folder, which is resumed


def read_job(run: RunFolder) -> dict[str, Any]:
    """Read a job's row of the table, with the names of `reports.rows`; unknown values are missing."""
    job = run.job() or {}
    rows, _ = read_results(run)
    row = next(row for row in rows if row["headline"])
    return row | {"job": job.get("job"), "name": run.path.name, "overrides": shlex.join(job.get("overrides", ()))}


def write_table(sweep: SweepFolder) -> list[dict[str, Any]]:
    """Write the table of all jobs that have begun; several processes may do this at once. -> the rows."""
    with sweep.lock():
        rows = [read_job(run) for run in sweep.jobs()]
        sweep.write_table(to_csv(COLUMNS, ([row.get(name) for name in COLUMNS] for row in rows)))
    return rows


def report_crash(error: Exception) -> bool:
    """Report an error of the launcher or sweeper. -> whether this process has started a sweep."""
    if current is None:
        return False
    append_traceback(current.log, error)
    print(f"error: the sweep crashed: {describe(error)} (traceback in {current.log})", file=sys.stderr)
    return True


def finish(code: int | str | None) -> int | str | None:
    """Print the table of this process's sweep, if there is one. -> `code`, or 2 if a job is not finished."""
    global current
    sweep, current = current, None
    if sweep is None or (code == 2 and sweep.remove_unused()):
        return code
    from adlight.reports.tables import by_job, print_table  # with pandas: not for --help

    rows = write_table(sweep)
    print_table(by_job(rows), f"sweep {sweep}", [f"table: {sweep.table_path}"])
    unfinished = [row for row in rows if row["status"] != "finished"]
    for row in unfinished:
        print(f"error: job {row['job']} ({row['name']}): {row.get('error') or row['status']}", file=sys.stderr)
    if code or unfinished:
        advice = f"finished jobs and epochs are kept. Continue with: {resume_sweep_command(sweep)}"
        print(advice, file=sys.stderr, flush=True)
    return code or (2 if unfinished else 0)
