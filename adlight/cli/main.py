"""What the entry points share: Hydra around a task, one clear line for every foreseeable error, exit codes.

0 done; 2 something the user can mend (one line on stderr); 130 stopped by Ctrl-C or SIGTERM; 1 and a traceback: our
mistake.
"""

import errno
import functools
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from adlight.runs.config import CONF
from adlight.runs.folder import rank
from adlight.types import UserError, unknown_name

UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
EXTRAS = {"optuna": "optuna", "joblib": "joblib", "ray": "ray", "submitit_slurm": "slurm"}  # plugins of Hydra
FLAGS_WITH_VALUES = {"--cfg", "-c", "--info", "-i", "--package", "-p", "--experimental-rerun"}
FLAGS_WITH_VALUES |= {"--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp"}
FLAGS_THAT_SHOW = {"--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i"}
FLAGS_THAT_SHOW |= {"--shell-completion", "-sc"}
NOISE = [
    ".*does not have many workers.*",
    "It is recommended to use .self.log.*sync_dist=True.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*srun.*command is available.*",
    ".*LeafSpec.*",
    "The parameter .pretrained. is deprecated.*",  # lpips asks torchvision in the old way
    "Arguments other than a weight enum.*",
]


def run(task: Callable[[DictConfig], Any], config_name: str, prepare: Callable[[list[str]], list[str]]) -> None:
    """Run a task under Hydra and end the process with its exit code.

    Args:
        task: what to do with the composed config. To be stopped by Ctrl-C it raises `KeyboardInterrupt(how to go on)`.
        config_name: file in conf/ to start from.
        prepare: rewrites the command line's words before Hydra reads them.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us instead of being printed by Hydra
    quiet()
    failures: list[str] = []

    @functools.wraps(task)
    def job(config: DictConfig) -> Any:
        try:
            with dashboard_finished():
                return task(config)
        except Exception as error:
            line = explain(error)
            if line is None:
                raise
            failures.append(line)  # the other jobs of a multirun go on, and Hydra adds no lines of its own
            return None

    program = hydra.main(config_path=str(CONF), config_name=config_name, version_base="1.3")(job)
    try:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            raise UserError("start it without torchrun: trainer=ddp starts the other processes itself")
        if "LOCAL_RANK" not in os.environ:  # the other processes of a run are given the words that we ended with
            sys.argv[1:] = prepare(sys.argv[1:])
        with terminated_as_by_ctrl_c():
            program()
        if failures:
            stop("\n".join(f"error: {line}" for line in failures), 2)
    except (KeyboardInterrupt, SystemExit) as error:
        if not interrupted(error):
            raise
        stop(f"stopped. {error if isinstance(error, KeyboardInterrupt) else ''}".strip(), 130)
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        stop(f"error: {line}", 2)


@contextmanager
def terminated_as_by_ctrl_c() -> Iterator[None]:
    """Let SIGTERM (`kill`, `timeout`, a shutdown) stop this process as Ctrl-C does.

    Lightning calls the handler that it finds after its own, which alone waits for the next batch and exits with 0.
    """
    stopped = False

    def interrupt(number: int, frame: Any) -> None:
        nonlocal stopped
        if not stopped:  # once is enough: what follows puts things in order
            stopped = True
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN if stopped else before)


@contextmanager
def dashboard_finished() -> Iterator[None]:
    """Close a job's run of W&B, if there is one: each job of a multirun has its own, and failed ones are marked."""
    code = 1
    try:
        yield
        code = 0
    except BaseException as error:
        code = 130 if interrupted(error) else 1 if explain(error) is None else 2
        raise
    finally:
        if "wandb" in sys.modules:
            sys.modules["wandb"].finish(exit_code=code)


def quiet() -> None:
    """Silence warnings that tell a user nothing."""
    for message in NOISE:
        warnings.filterwarnings("ignore", message)


def stop(line: str, code: int) -> None:
    """Print a line on stderr and leave; of several processes each says what stopped it, as they may differ."""
    if code != 130 or rank() == 0:
        print(line if rank() == 0 else f"(process {rank()}) {line}", file=sys.stderr, flush=True)
    sys.exit(code)


def interrupted(error: BaseException) -> bool:
    """Whether an exception goes back to Ctrl-C or SIGTERM, of which Lightning makes exits with 1 and with 0."""
    terminated = type(error).__name__ == "SIGTERMException"
    return terminated or isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt)


def explain(error: BaseException) -> str | None:
    """One line for an error that a user can mend; None for those that are ours."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return explain(error.__cause__) or explain_value(error.__cause__)
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return explain_config(error)
    if isinstance(error, OSError) and error.strerror is not None:
        hint = " (hydra.run.dir=<folder> chooses another run folder)" if error.errno in UNWRITABLE else ""
        return f"{error.filename or 'a file of the run'}: {error.strerror}{hint}"
    if type(error).__name__ == "MisconfigurationException":  # Lightning's word for a bad trainer setting
        return f"trainer: {first_line(error)}"
    if type(error).__name__ == "OutOfMemoryError":
        return f"the device's memory is full: try a smaller dataset.batch_size ({first_line(error)})"
    return None


def explain_value(error: BaseException) -> str | None:
    """One line for a value that a constructor refused; None for anything else."""
    if isinstance(error, ValueError | TypeError | ImportError):
        return first_line(error)
    return None


def first_line(error: BaseException) -> str:
    """First line of an error's text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def explain_config(error: BaseException) -> str:
    """One line for an unknown name, a missing value or an override that cannot be read."""
    if isinstance(error, OverrideParseException):
        return (
            f"cannot read the override {error.override!r}: values with any of = # ~ ( ) [ ] {{ }} or spaces need "
            "quotes inside quotes, such as 'dataset.root=\"my folder\"'"
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if name in EXTRAS:
            return f"{group}/{name} is not installed: pip install 'adlight[{EXTRAS[name]}]'"
        return unknown(group or "config", name, list(error.options or []))
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value: give one with {error.full_key}=<value>"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, OmegaConfBaseException) and isinstance(cause.parent_node, DictConfig):
        key = str(cause.key)
        parent, _, _ = (cause.full_key or key).rpartition(".")
        return unknown(f"setting in {parent}" if parent else "setting", key, list(map(str, cause.parent_node)))
    text = first_line(error)
    if text.startswith("Could not override '"):
        key = text.split("'")[1]
        return unknown("setting or config group", key, top_level())
    return text


def unknown(kind: str, name: str, known: list[str]) -> str:
    """`unknown_name` without the parts that others are made of."""
    return unknown_name(kind, name, sorted(choice for choice in known if not choice.startswith("_")))


def top_level() -> list[str]:
    """Config groups and the settings of train.yaml."""
    groups = [path.name for path in CONF.iterdir() if path.is_dir()]
    lines = (CONF / "train.yaml").read_text().splitlines()
    return groups + [line.partition(":")[0] for line in lines if line[:1].isalpha()]


def overrides(argv: list[str]) -> list[bool]:
    """Which words of a command line are overrides: neither Hydra's flags nor the values of these."""
    return [
        not word.startswith("-") and before not in FLAGS_WITH_VALUES
        for before, word in zip(["", *argv], argv, strict=False)
    ]


def only_shows(argv: list[str]) -> bool:
    """Whether a command line only asks Hydra to print something."""
    return any(word.partition("=")[0] in FLAGS_THAT_SHOW for word in argv)


def value_of(argv: list[str], key: str) -> str | None:
    """Value of the last `key=value` among the words of a command line, without its quotes."""
    values = [word.partition("=")[2].strip("'\"") for word in argv if word.startswith(f"{key}=")]
    return values[-1] if values else None


def quoted(key: str, path: Path | str) -> str:
    """An override whose path Hydra's grammar takes whatever characters are in it."""
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{text}'"
