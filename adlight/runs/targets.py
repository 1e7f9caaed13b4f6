"""Targets of config nodes: found by name, and checked to make the kind of object that is needed there."""

import inspect
from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig

from adlight.types import UserError

KINDS = {  # classes that the nodes of a training must make
    "dataset": "adlight.data.datamodule.AnomalyDataModule",
    "model": "adlight.detection.module.AnomalyModule",
    "calibration": "adlight.metrics.thresholds.Calibration",
    "callbacks": "pytorch_lightning.Callback",
    "logger": "pytorch_lightning.loggers.Logger",
    "checkpoint": "adlight.runs.checkpoints.BestAndLast",
    "trainer": "pytorch_lightning.Trainer",
}
GROUPS = ("callbacks", "logger")  # each holds any number of nodes


def find_target(node: Any, key: str) -> Any:
    """Import the class or function that a node calls; raise a UserError if that is not possible."""
    name = node["_target_"]
    try:
        target = resolve_name(name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0] if isinstance(name, str) else "it is not a text"
        raise UserError(f"{key}._target_={name} cannot be found: {reason}") from error
    if not callable(target):
        raise UserError(f"{key}._target_={name} is neither a class nor a function")
    return target


def check_kind(node: DictConfig) -> None:
    """Raise a UserError if the target of a node of a training will not make the kind of object that is needed there."""
    if (kind := _required_kind(node)) is not None and "_target_" in node:
        key = str(node._get_full_key(None))
        target = find_target(node, key)
        _check_result(target, resolve_name(kind), node, key)
        if inspect.isbuiltin(target):  # no builtin makes any of these
            raise UserError(f"{key}._target_={node['_target_']} makes no {kind}, which is needed there")
        if node.get("_partial_"):
            raise UserError(f"{key}._partial_=true makes no {kind}: leave it out")


def check_factories(values: dict[str, Any], constructor: Any, key: str) -> None:
    """Check the arguments that a constructor will call to make something, such as an optimizer.

    Args:
        values: all arguments of the constructor; nodes are dicts.
        constructor: annotates such an argument as `Callable[..., Optimizer]`.
        key: key of the constructor's node.

    Raises:
        UserError: an argument makes another kind of object, or lacks `_partial_: true`.
    """
    hints = get_type_hints(constructor.__init__ if inspect.isclass(constructor) else constructor)
    for name, hint in hints.items():
        argument, kind = values.get(name), _factory_result(hint)
        if kind is None or not isinstance(argument, dict):
            continue
        if "_target_" in argument:
            nodes = {f"{key}.{name}": argument}
        else:
            nodes = {f"{key}.{name}.{part}": node for part, node in argument.items()}
        for place, node in nodes.items():
            if isinstance(node, dict) and "_target_" in node:
                _check_result(find_target(node, place), kind, node, place)
                if not node.get("_partial_"):
                    raise UserError(f"{place}._partial_ must be true: it is called later, with more arguments")


def check_made(node: DictConfig, made: Any) -> Any:
    """Return the object that a node of a training has made; raise a UserError if it is not of the kind needed there."""
    kind = _required_kind(node)
    if kind is not None and not isinstance(made, resolve_name(kind)):
        source = f"{node._get_full_key('_target_')}={node._target_}"
        raise UserError(f"{source} makes a {type(made).__name__}, but a {kind} is needed there")
    return made


def _check_result(target: Any, kind: type, node: Any, key: str) -> None:
    made = target if inspect.isclass(target) else _return_type(target)
    if inspect.isclass(made) and not issubclass(made, kind):
        needed = f"{kind.__module__}.{kind.__qualname__}"
        raise UserError(f"{key}._target_={node['_target_']} makes no {needed}, which is needed there")


def _return_type(function: Any) -> Any:
    try:
        return get_type_hints(function).get("return")
    except Exception:  # the annotations cannot be evaluated
        return None


def _factory_result(annotation: Any) -> type | None:
    """Return X for an annotation that contains `Callable[..., X]`."""
    if get_origin(annotation) is Callable:
        made = get_args(annotation)[1]
        return made if inspect.isclass(made) else None
    return next((kind for part in get_args(annotation) if (kind := _factory_result(part)) is not None), None)


def _required_kind(node: DictConfig) -> str | None:
    """Return what a node must make, by its place in the config; None if it is part of another node."""
    name, *below = str(node._get_full_key(None)).split(".")
    return KINDS.get(name) if len(below) == (name in GROUPS) else None
