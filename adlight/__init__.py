"""Industrial image anomaly detection with PyTorch Lightning and Hydra.

`adlight.train("model=retrieval", "dataset=folder", root="parts", ...)` trains and tests a detector and returns a `Run`;
`adlight.load("runs/<name>")` opens a finished run. A run has `metrics`, `predictions` (a pandas DataFrame) and
`detector()`, which predicts for new images.
"""

import os
import sys


def _stop(kind: type[BaseException], error: BaseException, trace: "TracebackType | None") -> None:
    """Exit without a traceback if Ctrl-C stops a program during its imports."""
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    print("stopped.", file=sys.stderr, flush=True)
    os._exit(130)


if os.path.basename((getattr(sys, "argv", None) or [""])[0]) in ("-m", "adlight"):  # one of our programs is starting
    sys.excepthook = _stop

from importlib import import_module  # noqa: E402  (`typing` takes longer than all before it)
from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:
    from types import TracebackType

    from adlight.api import Run, TrainProgram, load
    from adlight.data.source import Source
    from adlight.detection.module import AnomalyModule
    from adlight.detector import Detector
    from adlight.types import Prediction, Record, Scores, Unreadable, UserError

    train: TrainProgram

__version__ = "0.2.0"
__all__ = ["AnomalyModule", "Detector", "Prediction", "Record", "Run", "Scores", "Source", "Unreadable", "UserError"]
__all__ += ["load", "train"]

_MODULES = {
    "api": ("Run", "load"),
    "detector": ("Detector",),
    "types": ("Prediction", "Record", "Scores", "Unreadable", "UserError"),
    "data.source": ("Source",),
    "detection.module": ("AnomalyModule",),
}


def __getattr__(name: str) -> Any:
    """Import public names on first use, as torch takes seconds."""
    if name == "train":
        return import_module("adlight.train")  # a module that can be called
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"adlight.{module}"), name)
    raise AttributeError(f"module 'adlight' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
