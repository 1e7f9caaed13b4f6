"""Explain errors that the user can fix in one line; all others are bugs and keep their traceback."""

import errno
import signal
import traceback
import warnings
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from adlight.runs.overrides import explain_config
from adlight.runs.targets import explain_refusal
from adlight.types import UserError, first_line

UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EEXIST}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
GROUPS = {  # config group by the package of Lightning that rejects its settings only when they are used
    "pytorch_lightning.callbacks": "callbacks",
    "pytorch_lightning.loggers": "logger",
    "lightning_fabric.loggers": "logger",
}
NO_MEMORY = "can't allocate memory"  # torch's message for CPUs
NOISE = [
    ".*does not have many workers.*",
    "It is recommended to use .self.log.*sync_dist=True.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*srun.*command is available.*",
    ".*LeafSpec.*",
    ".*all_gather is deprecated.*",
    ".*have no .validation_step.*",  # the first stage of a GAN
    ".*in eval mode at the start of training.*",  # the GAN is frozen then
    "The parameter .pretrained. is deprecated.*",  # from lpips
    "Arguments other than a weight enum.*",
    "hydra.utils.instantiate.. resolved _target_",  # Hydra 1.4, which announces 1.5
    "The version_base parameter is deprecated",
    "register_new_resolver.. is deprecated",  # called by plugins of Hydra
    "Glyph .* missing from font.*",  # Matplotlib's font only measures the text; the browser's displays it
]


def filter_warnings() -> None:
    """Silence warnings that do not concern the user."""
    for message in NOISE:
        warnings.filterwarnings("ignore", message)


def is_interruption(error: BaseException) -> bool:
    """Return whether an exception is due to Ctrl-C or SIGTERM, which Lightning and Ray turn into exits."""
    terminated = type(error).__name__ == "SIGTERMException"
    terminated |= isinstance(error, SystemExit) and error.code == signal.SIGTERM  # by the handler that Ray installs
    return terminated or isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt)


def explain(error: BaseException) -> str | None:
    """Explain an error that the user can fix in one line; return None for a bug."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:  # from a launcher or sweeper
        key = str(error).rpartition("full_key: ")[2].strip()
        return explain(error.__cause__) or explain_refusal(error.__cause__, key)
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: {error.problem or error.context}: correct the file"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return explain_config(error)
    if isinstance(error, OSError) and error.strerror is not None:
        hint = "; hydra.run.dir=<folder> chooses another folder" if error.errno in UNWRITABLE | FULL else ""
        place = error.filename2 or error.filename or _folder()  # the target of a copy
        return f"{place}: {error.strerror}{', make room' * (error.errno in FULL)}{hint}"
    if type(error).__name__ == "MisconfigurationException":  # Lightning's, for a bad setting of the trainer
        hint = " Set trainer=cpu" if "gpu backend" in str(error) else ""
        return f"trainer: {first_line(error)}{hint}"
    if type(error).__name__ == "OutOfMemoryError":
        return f"the device's memory is full: try a smaller dataset.batch_size ({first_line(error)})"
    if isinstance(error, ValueError | RuntimeError) and (group := _group_that_raised(error)):
        return f"{group}: {first_line(error.__cause__ or error)}"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and NO_MEMORY in str(error)):
        return f"the memory is full: try a smaller dataset.image_size or dataset.batch_size ({first_line(error)})"
    return None


def _group_that_raised(error: BaseException) -> str | None:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    module = str(frames[-1].f_globals.get("__name__")) if frames else ""
    return next((group for name, group in GROUPS.items() if module.startswith(f"{name}.")), None)


def _folder() -> str:
    # stands for the file in errors that name none, such as a full disk
    config: Any = HydraConfig.instance().cfg
    keys = ("hydra.runtime.output_dir", "hydra.run.dir") if config is not None else ()  # the first is set later
    return next((str(found) for key in keys if (found := OmegaConf.select(config, key))), "a file of the run")


def describe(error: BaseException) -> str:
    """Describe any error in one line."""
    return explain(error) or f"{type(error).__name__}: {first_line(error)}"
