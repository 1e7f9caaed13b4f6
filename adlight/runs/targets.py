"""What nodes call, and what they must make: compared with what their targets say, and with what was made."""

import inspect
from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig

from adlight.types import UserError

KINDS = {  # of the nodes of a training
    "dataset": "adlight.data.datamodule.AnomalyDataModule",
    "model": "adlight.detection.module.AnomalyModule",
    "calibration": "adlight.metrics.thresholds.Calibration",
    "callbacks": "pytorch_lightning.Callback",
    "logger": "pytorch_lightning.loggers.Logger",
    "checkpoint": "adlight.runs.checkpoints.BestAndLast",
    "trainer": "pytorch_lightning.Trainer",
}
GROUPS = ("callbacks", "logger")  # of nodes


def find_target(node: Any, key: str) -> Any:
    """Find the class or function that a node calls.

    Raises:
        UserError: there is none, or it cannot be imported.
    """
    name = node["_target_"]
    try:
        found = resolve_name(name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        line = str(error).splitlines()[0] if isinstance(name, str) else "it is no text"
        raise UserError(f"{key}._target_={name} is not to be found: {line}") from error
    if not callable(found):
        raise UserError(f"{key}._target_={name} is neither a class nor a function")
    return found


def check_kind(node: DictConfig) -> None:
    """Refuse a node of a training whose target says that it makes something else than is needed there.

    Raises:
        UserError: it does.
    """
    if (kind := _kind_of(node)) is not None and "_target_" in node:
        key = str(node._get_full_key(None))
        target = find_target(node, key)
        _refuse_other(target, resolve_name(kind), node, key)
        if inspect.isbuiltin(target):  # Python's own: they make none of these
            raise UserError(f"{key}._target_={node['_target_']} makes no {kind}, which is needed there")
        if node.get("_partial_"):
            raise UserError(f"{key}._partial_=true makes no {kind}: leave it out")


def check_makers(values: dict[str, Any], target: Any, key: str) -> None:
    """Refuse arguments of a constructor that are to make something, and say that they make something else.

    Args:
        values: the arguments, nodes among them as dicts.
        target: the constructor, whose annotations are such as `Callable[..., Optimizer]`.
        key: of its node.

    Raises:
        UserError: one does, or is not called with more arguments later on, as `_partial_` says.
    """
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    for name, kind in ((name, _made_by(hint)) for name, hint in hints.items() if isinstance(values.get(name), dict)):
        several = {f"{key}.{name}.{part}": one for part, one in values[name].items()}
        for place, one in ({f"{key}.{name}": values[name]} if "_target_" in values[name] else several).items():
            if kind is not None and isinstance(one, dict) and "_target_" in one:
                _refuse_other(find_target(one, place), kind, one, place)
                if not one.get("_partial_"):
                    raise UserError(f"{place}._partial_ must be true: more arguments come later")


def check_made(node: DictConfig, made: Any) -> Any:
    """Give back what a node of a training has made.

    Raises:
        UserError: it is something else than is needed there.
    """
    kind = _kind_of(node)
    if kind is not None and not isinstance(made, resolve_name(kind)):
        said = f"{node._get_full_key('_target_')}={node._target_} makes a {type(made).__name__}"
        raise UserError(f"{said}, but a {kind} is needed there")
    return made


def _refuse_other(target: Any, kind: type, node: Any, key: str) -> None:
    made = target if inspect.isclass(target) else _returned_by(target)
    if inspect.isclass(made) and not issubclass(made, kind):
        needed = f"{kind.__module__}.{kind.__qualname__}"
        raise UserError(f"{key}._target_={node['_target_']} makes no {needed}, which is needed there")


def _returned_by(function: Any) -> Any:
    try:
        return get_type_hints(function).get("return")
    except Exception:  # annotations that cannot be read say nothing
        return None


def _made_by(annotation: Any) -> type | None:
    """Find X in an annotation with `Callable[..., X]` in it."""
    if get_origin(annotation) is Callable:
        made = get_args(annotation)[1]
        return made if inspect.isclass(made) else None
    return next((found for part in get_args(annotation) if (found := _made_by(part)) is not None), None)


def _kind_of(node: DictConfig) -> str | None:
    """Look up what a node must make by where it stands; None if it is a part of another one."""
    name, *below = str(node._get_full_key(None)).split(".")
    return KINDS.get(name) if len(below) == (name in GROUPS) else None
