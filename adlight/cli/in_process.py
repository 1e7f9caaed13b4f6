"""Programs called from Python: the same folders, checks, locks and errors as a command's, and nothing left behind."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.version import VersionBase
from omegaconf import DictConfig

from adlight.cli import folders
from adlight.cli.arguments import refuse_empty_places
from adlight.cli.errors import explain, filter_warnings
from adlight.cli.flags import mark_overrides
from adlight.cli.job import finish_wandb, needs_own_process, run_command
from adlight.cli.overrides import add_settings, use_config_dir
from adlight.runs.config import CONF
from adlight.runs.folder import RunFolder
from adlight.types import UserError


def call(
    task: Callable[[DictConfig], Any],
    program: str,
    prepare: Callable[[list[str]], list[str]],
    words: Sequence[str],
    settings: Mapping[str, Any],
) -> RunFolder:
    """Run a task under Hydra in this process, with several devices in one of its own. -> the folder that it wrote.

    Args:
        task: what to do with the composed config.
        program: the name of its config and its module.
        prepare: rewrites the words before Hydra reads them, as for the command.
        words: overrides; of flags only `--config-dir`.
        settings: more overrides by name, see `add_settings`.

    Raises:
        UserError: what a command would say in one line.
        KeyboardInterrupt: it was stopped; the text says how to continue.
    """
    if "LOCAL_RANK" in os.environ:
        raise UserError(f"this is one of several processes of a run: start them by python -m adlight.{program}")
    written, errors = list[RunFolder](), list[Exception]()

    def job(config: DictConfig) -> None:
        written.append(RunFolder(HydraConfig.get().runtime.output_dir))
        try:
            if needs_own_process(config.trainer):
                run_command(written[0], relay=True)
            else:
                with _keep_torch(), finish_wandb():
                    task(config)
        except Exception as error:  # Hydra would print lines of its own
            errors.append(error)

    try:
        with _keep_globals():
            refuse_empty_places(words)
            argv = prepare(add_settings(use_config_dir(words), settings))
            if flags := [word for word, is_override in mark_overrides(argv) if not is_override]:
                raise UserError(f"{flags[0]} is for the command line: give settings only, and one call for each run")
            sys.argv = [f"adlight.{program}", *argv]  # what the run's files name as its command
            with initialize_config_dir(str(CONF), version_base="1.3", job_name=program):
                hydra = GlobalHydra.instance().hydra
                assert hydra is not None
                hydra.run(program, job, argv)
        if errors:
            raise errors[0]
    except folders.Refusal as error:
        raise UserError(str(error)) from None
    except Exception as error:
        line = explain(error)
        if line is None or isinstance(error, UserError):
            raise
        raise UserError(line) from error
    finally:
        folders.held.close()
    return written[0]


@contextmanager
def _keep_globals() -> Iterator[None]:
    """Put back what Hydra, its logging and a training change for the whole process."""
    known, config, version = GlobalHydra.instance(), HydraConfig.instance(), VersionBase.instance()
    before = known.hydra, config.cfg, version.version_base, sys.argv
    environment, (handlers, level) = dict(os.environ), (logging.root.handlers[:], logging.root.level)
    known.clear()
    try:
        with warnings.catch_warnings():
            filter_warnings()
            yield
    finally:
        known.hydra, config.cfg, version.version_base, sys.argv = before
        GlobalHydra.set_instance(known)  # Hydra has made a copy of it
        for handler in set(logging.root.handlers) - set(handlers):
            handler.close()
        logging.root.handlers[:], logging.root.level = handlers, level
        for key in os.environ.keys() - environment.keys():
            del os.environ[key]
        os.environ.update(environment)


@contextmanager
def _keep_torch() -> Iterator[None]:
    """Put back the states of random generators, and the precision of matrix products."""
    import torch
    from pytorch_lightning.utilities.seed import isolate_rng

    precision = torch.get_float32_matmul_precision()
    try:
        with isolate_rng():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
