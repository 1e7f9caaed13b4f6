"""What the nodes of a training must make, compared with what their targets say, and with what was made."""

import inspect
from pkgutil import resolve_name
from typing import Any, get_type_hints

from omegaconf import DictConfig

from adlight.types import UserError

KINDS = {
    "dataset": "adlight.data.datamodule.AnomalyDataModule",
    "model": "adlight.detection.module.AnomalyModule",
    "calibration": "adlight.metrics.thresholds.Calibration",
    "callbacks": "pytorch_lightning.Callback",
    "logger": "pytorch_lightning.loggers.Logger",
    "checkpoint": "adlight.runs.checkpoints.BestAndLast",
    "trainer": "pytorch_lightning.Trainer",
}
GROUPS = ("callbacks", "logger")  # of nodes


def check_target(node: DictConfig) -> None:
    """Refuse a node of a training whose target says that it makes something else.

    Raises:
        UserError: it does, or it is no call.
    """
    if (kind := _kind_of(node)) is None or "_target_" not in node:
        return
    try:
        target = resolve_name(node._target_)
        made = target if inspect.isclass(target) else get_type_hints(target).get("return")
    except Exception:  # no such target: instantiate says so
        return
    if node.get("_partial_"):
        raise UserError(f"{node._get_full_key('_partial_')}=true makes no {kind}: leave it out")
    if inspect.isclass(made) and not issubclass(made, resolve_name(kind)):
        raise UserError(f"{node._get_full_key('_target_')}={node._target_} makes no {kind}, which is needed there")


def check_made(node: DictConfig, made: Any) -> Any:
    """Give back what a node of a training has made.

    Raises:
        UserError: it is something else than is needed there.
    """
    kind = _kind_of(node)
    if kind is not None and not isinstance(made, resolve_name(kind)):
        raise UserError(
            f"{node._get_full_key('_target_')}={node._target_} makes a {type(made).__name__}, and no {kind}, which is "
            "needed there"
        )
    return made


def _kind_of(node: DictConfig) -> str | None:
    """Look up what a node must make by where it stands; None if it is a part of another one."""
    name, *below = str(node._get_full_key(None)).split(".")
    return KINDS.get(name) if len(below) == (name in GROUPS) else None
