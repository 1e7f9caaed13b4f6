"""Training from Python, with the folders, checks, locks and errors of the command; global state is restored."""

import difflib
import logging
import os
import random
import re
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
from adlight.cli.arguments import train_arguments
from adlight.cli.errors import explain, filter_warnings
from adlight.cli.job import finish_wandb, needs_own_process, run_command
from adlight.cli.words import check_words, mark_overrides, to_override, use_config_dir
from adlight.runs.config import CONF, flatten
from adlight.runs.folder import RunFolder
from adlight.runs.overrides import choose_none, compose_config
from adlight.types import UserError, unknown_name

SHORTENED = ("dataset", "trainer", "model")  # nodes whose settings may be named without the node


def run_training(train: Callable[[DictConfig], Any], words: Sequence[str], settings: Mapping[str, Any]) -> RunFolder:
    """Train under Hydra in this process or, for several devices, in a process of its own. -> the run folder.

    Args:
        train: called with the composed config.
        words: overrides; the only flag is `--config-dir`.
        settings: more overrides by name, see `add_settings`.

    Raises:
        UserError: the message is the line that the command would print.
        KeyboardInterrupt: the training was stopped; the text says how to continue.
    """
    if "LOCAL_RANK" in os.environ:
        raise UserError("this is one of several processes of a run: start them by adlight train")
    try:
        with _keep_globals():
            check_words(words)
            argv = train_arguments(add_settings(use_config_dir(words), settings))
            if flags := [word for word, is_override in mark_overrides(argv) if not is_override]:
                raise UserError(f"{flags[0]} is for the command line: give settings only, and one call for each run")
            sys.argv = ["adlight.train", *argv]  # recorded in the run's files as the command
            return _run_hydra(train, argv)
    except folders.Refusal as error:
        raise UserError(str(error)) from None
    except Exception as error:
        line = explain(error)
        if line is not None:
            folders.remove_unused()
        if line is None or isinstance(error, UserError):
            raise
        raise UserError(line) from error
    finally:
        folders.held.close()


def _run_hydra(train: Callable[[DictConfig], Any], argv: list[str]) -> RunFolder:
    """Compose a config and train with it, as `hydra.main` does. -> the run folder."""
    written, errors = list[RunFolder](), list[Exception]()

    def job(config: DictConfig) -> None:
        written.append(RunFolder(HydraConfig.get().runtime.output_dir))
        try:
            if needs_own_process(config.trainer):
                folders.new.clear()  # the other process's log and traceback stay
                run_command(written[0], config, relay=True)
            else:
                with _keep_torch(), finish_wandb():
                    train(config)
        except Exception as error:  # Hydra would print its own message
            errors.append(error)

    with initialize_config_dir(str(CONF), version_base="1.3", job_name="train"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        hydra.run("train", job, argv)
    if errors:
        raise errors[0]
    return written[0]


def add_settings(words: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """Add settings by name to overrides of a training; `root` is short for `dataset.root`, for example.

    Raises:
        UserError: the name is unknown or ambiguous, or a config cannot hold the value.
    """
    exact = {key: value for key, value in settings.items() if re.search(r"\W", key) or (CONF / key).is_dir()}
    overrides = [*words, *(to_override(key, value) for key, value in exact.items())]
    rest = {key: value for key, value in settings.items() if key not in exact}
    if not rest:
        return overrides
    resumed = RunFolder(str(rest["resume"])) if rest.get("resume") else None
    if resumed is not None and resumed.is_run:
        config = resumed.read_config()
    else:
        config = compose_config("train", map(choose_none, overrides))
    return [*overrides, *(to_override(_full_name(key, config), value) for key, value in rest.items())]


def _full_name(key: str, config: DictConfig) -> str:
    if key in list(config):
        return key
    nodes = {name: list(node) for name in SHORTENED if isinstance(node := config.get(name), DictConfig)}
    parents = [name for name, keys in nodes.items() if key in keys]  # `key in node` is False if it has no value
    if len(parents) == 1:
        return f"{parents[0]}.{key}"
    if parents:
        names = " or ".join(f"{name}.{key}" for name in parents)
        raise UserError(f'{key} could be {names}: name one as **{{"{parents[0]}.{key}": ...}}')
    if deeper := [path for path in flatten(config) if path.endswith(f".{key}")]:
        raise UserError(f'{key} is a setting of a part: name it as **{{"{deeper[0]}": ...}}')
    known = {str(name) for keys in (config, *nodes.values()) for name in keys}
    near = difflib.get_close_matches(key, known, cutoff=0.5) or sorted(map(str, nodes.get("dataset", known)))
    raise UserError(unknown_name("setting", key, [name for name in near if not name.startswith("_")]))


@contextmanager
def _keep_globals() -> Iterator[None]:
    """Restore the global state that Hydra, its logging and a training change."""
    known, config, version = GlobalHydra.instance(), HydraConfig.instance(), VersionBase.instance()
    before, draws = (known.hydra, config.cfg, version.version_base, sys.argv), random.getstate()
    environment, (handlers, level) = dict(os.environ), (logging.root.handlers[:], logging.root.level)
    known.clear()
    try:
        with warnings.catch_warnings():
            filter_warnings()
            yield
    finally:
        random.setstate(draws)  # the first import of Lightning changes it
        known.hydra, config.cfg, version.version_base, sys.argv = before
        GlobalHydra.set_instance(known)  # Hydra has replaced it with a copy
        for handler in set(logging.root.handlers) - set(handlers):
            handler.close()
        logging.root.handlers[:], logging.root.level = handlers, level
        for key in os.environ.keys() - environment.keys():
            del os.environ[key]
        os.environ.update(environment)


@contextmanager
def _keep_torch() -> Iterator[None]:
    """Restore the states of the random number generators and the precision of matrix products."""
    import torch
    from pytorch_lightning.utilities.seed import isolate_rng

    precision = torch.get_float32_matmul_precision()
    try:
        with isolate_rng():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
