"""One line for every error that a user can fix; the others are ours, and keep their traceback."""

import errno
import re
import warnings
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from adlight.runs.overrides import explain_config
from adlight.types import UserError

UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EEXIST}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
PARTS = {"pytorch_lightning.callbacks": "callbacks", "pytorch_lightning.loggers": "logger"}  # refuse when they are used
PARTS |= {"lightning_fabric.loggers": "logger"}
NO_MEMORY = "can't allocate memory"  # of a CPU, in torch's words
NOISE = [
    ".*does not have many workers.*",
    "It is recommended to use .self.log.*sync_dist=True.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*srun.*command is available.*",
    ".*LeafSpec.*",
    ".*have no .validation_step.*",  # a GAN is not validated before it is inverted
    ".*in eval mode at the start of training.*",  # it is frozen then
    "The parameter .pretrained. is deprecated.*",  # lpips asks torchvision in the old way
    "Arguments other than a weight enum.*",
]


def filter_warnings() -> None:
    """Silence warnings that tell a user nothing."""
    for message in NOISE:
        warnings.filterwarnings("ignore", message)


def interrupted(error: BaseException) -> bool:
    """Tell whether an exception goes back to Ctrl-C or SIGTERM, of which Lightning makes exits with 1 and with 0."""
    terminated = type(error).__name__ == "SIGTERMException"
    return terminated or isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt)


def first_line(error: BaseException) -> str:
    """Take the first line of an error's text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def explain(error: BaseException) -> str | None:
    """Give one line for an error that a user can fix; None for one that is ours."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return explain(error.__cause__) or _explain_refusal(error.__cause__, _full_key(error))
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: {error.problem or error.context}: correct the file"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return explain_config(error)
    if isinstance(error, OSError) and error.strerror is not None:
        hint = "; hydra.run.dir=<folder> chooses another folder" if error.errno in UNWRITABLE | FULL else ""
        place = error.filename2 or error.filename or _folder()  # of a copy, where to
        return f"{place}: {error.strerror}{', make room' * (error.errno in FULL)}{hint}"
    if type(error).__name__ == "MisconfigurationException":  # Lightning's word for a bad trainer setting
        return f"trainer: {first_line(error)}"
    if type(error).__name__ == "OutOfMemoryError":
        return f"the device's memory is full: try a smaller dataset.batch_size ({first_line(error)})"
    if isinstance(error, ValueError | RuntimeError) and (part := _part_that_raised(error)):
        return f"{part}: {first_line(error.__cause__ or error)}"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and NO_MEMORY in str(error)):
        return f"the memory is full: try a smaller dataset.image_size or dataset.batch_size ({first_line(error)})"
    return None


def _part_that_raised(error: BaseException) -> str | None:
    """Name the group whose node Lightning's code that raised an error is of."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return next((group for name, group in PARTS.items() if module.startswith(f"{name}.")), None)


def _full_key(error: InstantiationException) -> str:
    """Find the node that Hydra could not make, which stands in the last line of its message."""
    _, found, key = str(error).rpartition("full_key: ")
    return key.strip() if found else ""


def _explain_refusal(cause: BaseException, node: str) -> str | None:
    """Give one line for a constructor's refusal of settings, or for a missing package."""
    if isinstance(cause, ImportError):
        return f"{node}: {first_line(cause)}" if node else first_line(cause)
    if not isinstance(cause, ValueError):
        # Lightning refuses settings of its Trainer by errors of any type
        return f"{node}: {first_line(cause)}" if node == "trainer" and isinstance(cause, TypeError) else None
    from adlight.faults import describe_faults
    from adlight.settings import SettingsError  # here and not above: --help must not wait for it

    if isinstance(cause, SettingsError) and node:
        return describe_faults(cause.faults, cause.values, lambda argument: f"{node}.{argument}")
    return name_node(first_line(cause), node)


def name_node(line: str, node: str) -> str:
    """Complete a constructor's line by its node: `tile=3 is ...` by the setting's full name, others by the node's."""
    return (f"{node}.{line}" if re.match(r"\w+=", line) else f"{node}: {line}") if node else line


def _folder() -> str:
    """Name what a command writes to, as a full disk is met where no file is named."""
    config: Any = HydraConfig.instance().cfg
    keys = ("hydra.runtime.output_dir", "hydra.run.dir") if config is not None else ()  # one is known sooner
    return next((str(found) for key in keys if (found := OmegaConf.select(config, key))), "a file of the run")


def describe(error: BaseException) -> str:
    """Give one line for any error."""
    return explain(error) or f"{type(error).__name__}: {first_line(error)}"
