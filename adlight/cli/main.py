"""Shared by all programs: Hydra around a task, one line for each error that the user can fix, and exit codes.

Exit codes: 0 done; 2 something the user can fix (one line on stderr); 130 stopped by Ctrl-C or SIGTERM; 1 a bug (with
its traceback).
"""

import atexit
import functools
import gc
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from adlight.cli import folders, sweep
from adlight.cli.arguments import without_sweep
from adlight.cli.errors import describe, explain, filter_warnings, is_interruption
from adlight.cli.job import FOLDER_VARIABLE, finish_wandb
from adlight.cli.words import (
    HELP_FLAGS,
    check_words,
    flags_first,
    quote_values,
    shows_info,
    use_config_dir,
)
from adlight.runs.config import CONF, read_yaml
from adlight.runs.files import append_traceback, rank
from adlight.runs.folder import RunFolder
from adlight.runs.log import copy_output, log_line
from adlight.types import UserError

Task = Callable[[DictConfig], Any]


def run(task: Task, config_name: str, prepare: Callable[[list[str]], list[str]]) -> None:
    """Run a task under Hydra, and exit with a code unless it succeeds.

    Args:
        task: called with the composed config; when stopped by Ctrl-C it raises `KeyboardInterrupt(advice)`.
        config_name: file in conf/ to start from.
        prepare: rewrites the words of the command line before Hydra parses them.
    """
    atexit.register(gc.freeze)  # at exit, Python would collect PyTorch's modules, for a second
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors instead of printing them
    filter_warnings()
    for stream in (sys.stdout, sys.stderr):  # file names may contain characters that the terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not {"--help", "-h"}.isdisjoint(sys.argv[1:]):  # Hydra would search all groups first, for a second or more
        with suppress(BrokenPipeError):  # from `| head`
            print(read_yaml(CONF / f"{config_name}.yaml").hydra.help.template, end="", flush=True)
        return
    failures: list[str] = []
    program = hydra.main(config_path=str(CONF), config_name=config_name, version_base="1.3")(_collect(task, failures))
    code = _run(program, prepare, failures)
    for line in failures:
        print(f"error: {line}", file=sys.stderr, flush=True)
    if code := sweep.finish(2 if failures else code):
        sys.exit(code)


def _collect(task: Task, failures: list[str]) -> Task:
    """Wrap a task to collect errors that the user can fix, so that the other jobs of a multirun continue."""

    @functools.wraps(task)
    def job(config: DictConfig) -> Any:
        try:
            with finish_wandb():
                return task(config)
        except Exception as error:
            if (line := explain(error)) is None:
                raise
            failures.append(line)
            return None

    return job


def _run(program: Callable[[], Any], prepare: Callable[[list[str]], list[str]], failures: list[str]) -> Any:
    """Call Hydra's program. -> its exit code."""
    try:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            raise UserError("start it without torchrun: trainer=ddp starts the other processes itself")
        if rank() == 0 and "torch" not in sys.modules and not shows_info(sys.argv[1:]):
            print("loading ...", flush=True)  # imports take seconds
        if "LOCAL_RANK" not in os.environ:  # otherwise the words were prepared by the run's first process
            check_words(sys.argv[1:])
            words = quote_values(use_config_dir(sys.argv[1:]))
            sys.argv[1:] = flags_first(prepare(words) if HELP_FLAGS.isdisjoint(words) else without_sweep(words))
        with sigterm_as_keyboard_interrupt():
            program()
    except folders.Refusal as error:
        failures.append(str(error))
        return 2
    except (KeyboardInterrupt, SystemExit) as error:
        if not is_interruption(error):
            return error.code if isinstance(error, SystemExit) else 130
        if rank() == 0:
            advice = f" {error}" if isinstance(error, KeyboardInterrupt) and str(error) else ""
            print(f"stopped.{advice}", file=sys.stderr, flush=True)
        return 130
    except Exception as error:
        if (line := explain(error)) is not None:
            failures.append(line)
        elif not sweep.report_crash(error):
            raise
        return 2
    finally:
        if failures:
            folders.remove_unused()
        folders.held.close()
    return 0


@contextmanager
def sigterm_as_keyboard_interrupt() -> Iterator[None]:
    """Make the first SIGTERM (from `kill`, `timeout` or a shutdown) act as Ctrl-C does.

    Later ones are ignored, as `timeout` and Slurm signal both a process and its group. Lightning calls this handler
    after its own, which alone would wait for the next batch and exit with code 0.
    """
    is_stopping = False

    def interrupt(number: int, frame: Any) -> None:
        nonlocal is_stopping
        if not is_stopping:
            is_stopping = True
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        if not is_stopping:
            signal.signal(signal.SIGTERM, before)


def run_logged(task: Task, config: DictConfig, records: bool = False) -> Any:
    """Run a task and copy its output, and the reason if it fails, to the log of its folder.

    With `records`, also record in the run folder why the task failed; a resumed run that fails before it has saved
    anything is left unchanged, except for the log, unless it is a job of a sweep.
    """
    run = RunFolder(HydraConfig.get().runtime.output_dir)
    before, earlier = run.metadata_text(), run.failure()
    with ExitStack() as afterwards, copy_output(run.log):
        try:
            return task(config)
        except Exception as error:
            with suppress(OSError):  # a full disk is reported on the terminal
                log_line(f"error: {describe(error)}")
                if explain(error) is None:
                    append_traceback(run.log, error)
                has_begun = not config.get("resume") or FOLDER_VARIABLE in os.environ or run.metadata_text() != before
                if records and has_begun and run.failure() in (None, earlier):  # the first failing process counts
                    run.write_failure(describe(error))
                elif records and has_begun and rank() == 0 and explain(error) is None:
                    # this process has only lost its connection to that one
                    line = f"error: {run.failure()} (see {run.log})"
                    afterwards.callback(lambda: print(line, file=sys.stderr, flush=True))  # when nothing is copied
            raise
