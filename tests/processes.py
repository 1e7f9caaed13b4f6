"""Commands: in this process, and in processes forked from a server that has imported once what takes seconds."""

import contextlib
import importlib
import io
import logging
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra


class Outcome(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


def check_refused(outcome, *said):
    """One line, the exit code of a user's mistake, and every fragment in the line."""
    assert outcome.code == 2, outcome
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1, outcome.err
    assert "Traceback" not in outcome.err + outcome.out
    for fragment in said:
        assert fragment in outcome.err


def call(folder, name, *words):
    """Run `adlight <name> <words>` in a folder, without a new process."""
    out, err = io.StringIO(), io.StringIO()
    environment, handlers = dict(os.environ), logging.root.handlers[:]
    code = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(),  # an entry point sets filters for its own process
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.chdir(folder)
        patch.setattr(sys, "argv", [f"adlight.{name}", *map(str, words)])
        try:
            importlib.import_module(f"adlight.{name}").main()
        except SystemExit as ending:
            code = ending.code
        finally:
            GlobalHydra.instance().clear()
            logging.root.handlers[:] = handlers
            for key in os.environ.keys() - environment.keys():
                del os.environ[key]
            os.environ.update(environment)
    return Outcome(code, out.getvalue(), err.getvalue())


class Command:
    """`adlight <name> <words>` in a folder; `environment` is added to that of the tests.

    Attributes:
        process: the process, which has begun.
    """

    def __init__(self, folder, name, *words, **environment):
        self.printed = Path(tempfile.mkdtemp(dir=folder))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self.process = multiprocessing.get_context("forkserver").Process(
            target=_run, args=(folder, name, words, environment, self.printed)
        )
        self.process.start()

    def stop(self, number):
        """Send a signal."""
        os.kill(self.process.pid, number)

    def wait(self):
        """Wait for its end. -> exit code (minus the number of the signal that killed it), output, errors."""
        self.process.join(900)  # seconds on an idle machine; a busy one may take minutes
        return self.process.exitcode, *((self.printed / name).read_text() for name in ("out", "err"))


def _run(folder, name, words, environment, printed):
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells make it deaf in the background
    for number, file in ((1, "out"), (2, "err")):
        os.dup2(os.open(printed / file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    torch.set_num_threads(1)  # as in the tests' own process: one thread by OMP_NUM_THREADS rounds differently
    sys.argv = [name, *map(str, words)]
    runpy.run_module(f"adlight.{name}", run_name="__main__", alter_sys=True)


def in_processes(adlight, name, *words):
    """Run a command whose devices have a process each, where nothing may go wrong. -> what it printed."""
    code, out, err = Command(adlight.folder, name, *words).wait()
    assert code == 0, err
    return out
