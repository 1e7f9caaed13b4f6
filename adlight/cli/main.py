"""What the entry points share: Hydra around a task, one clear line for every foreseeable error, exit codes.

0 done; 2 something the user can fix (one line on stderr); 130 stopped by Ctrl-C or SIGTERM; 1 and a traceback: our
mistake.
"""

import functools
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import hydra
from omegaconf import DictConfig

from adlight.cli import folders, sweep
from adlight.cli.arguments import refuse_empty_places
from adlight.cli.errors import explain, filter_warnings, interrupted
from adlight.cli.flags import FLAGS_THAT_SHOW, flags_first, refuse_unknown_flags
from adlight.cli.job import finish_wandb, note_failure
from adlight.cli.overrides import use_config_dir
from adlight.runs.config import CONF, read_yaml
from adlight.runs.files import rank
from adlight.types import UserError


def run(task: Callable[[DictConfig], Any], config_name: str, prepare: Callable[[list[str]], list[str]]) -> None:
    """Run a task under Hydra and end the process unless all went well.

    Args:
        task: what to do with the composed config. Stopped by Ctrl-C it raises `KeyboardInterrupt(how to continue)`.
        config_name: file in conf/ to start from.
        prepare: rewrites the command line's words before Hydra reads them.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us instead of being printed by Hydra
    filter_warnings()
    for stream in (sys.stdout, sys.stderr):  # names of files may hold what a terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not {"--help", "-h"}.isdisjoint(sys.argv[1:]):  # Hydra would list all groups first, for a second or more
        with suppress(BrokenPipeError):  # `| head` has seen enough
            print(read_yaml(CONF / f"{config_name}.yaml").hydra.help.template, end="", flush=True)
        return
    try:
        rank()
    except UserError as error:
        sys.exit(_print_error(str(error)))
    failures: list[str] = []
    _say_what_takes_time(config_name, sys.argv[1:])
    program = hydra.main(config_path=str(CONF), config_name=config_name, version_base="1.3")(_collect(task, failures))
    code = _run(program, prepare, failures)
    for line in failures:
        _print_error(line, f"(process {rank()}) " if rank() else "")  # of several processes each says what stopped it
    if code := sweep.finish(2 if failures else code):
        sys.exit(code)


def _print_error(line: str, prefix: str = "") -> int:
    print(f"{prefix}error: {line}", file=sys.stderr, flush=True)
    return 2


def _say_what_takes_time(program: str, argv: list[str]) -> None:
    """Print a line before seconds of imports; none where what is printed is the answer, or another process says it."""
    shows = any(word.partition("=")[0] in FLAGS_THAT_SHOW for word in argv)
    if "torch" not in sys.modules and not shows and rank() == 0:
        print("reading runs ..." if program == "report" else "loading PyTorch ...", flush=True)


def _collect(task: Callable[[DictConfig], Any], failures: list[str]) -> Callable[[DictConfig], Any]:
    """Let a task's foreseeable errors become lines: other jobs of a multirun continue, and Hydra adds nothing."""

    @functools.wraps(task)
    def job(config: DictConfig) -> Any:
        try:
            with finish_wandb():
                return task(config)
        except Exception as error:
            line = explain(error)
            if line is None:
                raise
            note_failure(error)
            failures.append(line)
            return None

    return job


def _run(program: Callable[[], Any], prepare: Callable[[list[str]], list[str]], failures: list[str]) -> Any:
    """Call Hydra's program. -> its exit code."""
    try:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            raise UserError("start it without torchrun: trainer=ddp starts the other processes itself")
        if "LOCAL_RANK" not in os.environ:  # the other processes of a run are given the words that we ended with
            refuse_unknown_flags(sys.argv[1:])
            refuse_empty_places(sys.argv[1:])
            sys.argv[1:] = flags_first(prepare(use_config_dir(sys.argv[1:])))
        with sigterm_as_keyboard_interrupt():
            program()
    except folders.Refusal as error:
        failures.append(str(error))
        return 2
    except (KeyboardInterrupt, SystemExit) as error:
        if not interrupted(error):
            return error.code if isinstance(error, SystemExit) else 130
        if rank() == 0:
            advice = f" {error}" if isinstance(error, KeyboardInterrupt) and str(error) else ""
            print(f"stopped.{advice}", file=sys.stderr, flush=True)
        return 130
    except Exception as error:
        note_failure(error)
        line = explain(error)
        if line is not None:
            failures.append(line)
        elif not sweep.report_crash(error):
            raise
        return 2
    finally:
        folders.held.close()
    return 0


@contextmanager
def sigterm_as_keyboard_interrupt() -> Iterator[None]:
    """Let SIGTERM (`kill`, `timeout`, a shutdown) stop this process as Ctrl-C does, and a second one end it at once.

    Signals within a second count as one: `timeout` and Slurm send it to a process and to its group. Lightning calls
    the handler that it finds after its own, which alone waits for the next batch and exits with 0.
    """
    first: float | None = None

    def interrupt(number: int, frame: Any) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - first > 1:
            os._exit(128 + number)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        if first is None:  # else a second one may still have to end what the interpreter does at exit
            signal.signal(signal.SIGTERM, before)
