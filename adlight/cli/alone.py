"""A command that is no job of a sweep: its log, and why it failed."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from adlight.cli.errors import describe, explain
from adlight.runs.files import append_traceback, rank
from adlight.runs.folder import RunFolder
from adlight.runs.log import copy_output, log_line


def run_logged(task: Callable[[DictConfig], Any], config: DictConfig) -> Any:
    """Run a task, with what it prints, and why it failed if it does, in its folder's log."""
    run = RunFolder(HydraConfig.get().runtime.output_dir)
    with copy_output(run.log):
        try:
            return task(config)
        except Exception as error:
            with suppress(OSError):  # a full disk is reported on the terminal
                log_line(f"error: {describe(error)}")
                if explain(error) is None:
                    append_traceback(run.log, error)
            raise


def run_alone(task: Callable[[DictConfig], Any], config: DictConfig) -> Any:
    """Run a task likewise, whose folder is a run's: it holds why the run failed, too.

    A resumed run that fails before anything new is kept stays as it was, but for a line of its log.
    """
    run = RunFolder(HydraConfig.get().runtime.output_dir)
    before = run.metadata_text()
    try:
        return run_logged(task, config)
    except Exception as error:
        with suppress(OSError):  # as above
            has_begun = not config.get("resume") or run.metadata_text() != before
            if has_begun and (rank() == 0 or run.failure() is None):  # of several processes the first counts
                run.write_failure((f"process {rank()}: " if rank() else "") + describe(error))
        raise
