"""Targets of config nodes: find them by name, check that they make the required kind of object, and call them."""

import inspect
import re
from collections.abc import Callable
from functools import partial
from pkgutil import resolve_name
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig

from adlight.types import UserError, first_line

KINDS = {  # required class of the objects that a training's nodes make
    "dataset": "adlight.data.datamodule.AnomalyDataModule",
    "model": "adlight.detection.module.AnomalyModule",
    "calibration": "adlight.metrics.thresholds.Calibration",
    "callbacks": "pytorch_lightning.Callback",
    "logger": "pytorch_lightning.loggers.Logger",
    "checkpoint": "adlight.runs.checkpoints.BestAndLast",
    "trainer": "pytorch_lightning.Trainer",
}
GROUPS = ("callbacks", "logger")  # each holds any number of nodes
KEYWORDS = ("_target_", "_partial_", "_args_")  # of nodes, as in Hydra


def find_target(node: Any, key: str) -> Any:
    """Import the class or function that a node calls; raise a UserError if that is not possible."""
    name = node["_target_"]
    try:
        target = resolve_name(name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        reason = first_line(error) if isinstance(name, str) else "it is not a text"
        raise UserError(f"{key}._target_={name} cannot be found: {reason}") from error
    if not callable(target):
        raise UserError(f"{key}._target_={name} is neither a class nor a function")
    return target


def check_factories(values: dict[str, Any], constructor: Any, key: str) -> None:
    """Check the arguments that a constructor calls to make objects, such as an optimizer.

    Args:
        values: all arguments of the constructor; nodes are dicts.
        constructor: class or function that annotates these arguments as `Callable[..., Optimizer]`, for example.
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
            if not isinstance(node, dict) or "_target_" not in node:
                continue
            made = find_target(node, place)
            if inspect.isclass(made) and not issubclass(made, kind):
                needed = f"{kind.__module__}.{kind.__qualname__}"
                raise UserError(f"{place}._target_={node['_target_']} makes no {needed}, which is needed there")
            if not node.get("_partial_"):
                raise UserError(f"{place}._partial_ must be true: it is called later, with more arguments")


def check_made(node: DictConfig, made: Any) -> Any:
    """Return the object that a training's node has made; raise a UserError if it is not of the required kind."""
    name, *below = str(node._get_full_key(None)).split(".")
    kind = KINDS.get(name) if len(below) == (name in GROUPS) else None  # otherwise it is part of another node
    if kind is not None and not isinstance(made, resolve_name(kind)):
        source = f"{node._get_full_key('_target_')}={node._target_}"
        raise UserError(f"{source} makes a {type(made).__name__}, but a {kind} is needed there")
    return made


def build(node: Any, key: str, **supplied: Any) -> Any:
    """Build the object that a trusted node of plain dicts and lists describes, as Hydra's `instantiate` does.

    Args:
        node: the node, with all interpolations resolved.
        key: its key in the config, for the UserError if a constructor rejects its arguments.
        supplied: further arguments for the node's target.
    """
    if isinstance(node, list):
        return [build(item, f"{key}.{i}") for i, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    values = {name: build(value, f"{key}.{name}") for name, value in node.items() if name not in KEYWORDS} | supplied
    if "_target_" not in node:
        return values
    call = partial(resolve_name(node["_target_"]), *build(node.get("_args_", []), f"{key}._args_"), **values)
    try:
        return call if node.get("_partial_") else call()
    except Exception as error:
        if line := explain_refusal(error, key):
            raise UserError(line) from error
        raise


def explain_refusal(error: BaseException, key: str) -> str | None:
    """Explain in one line why the constructor of the node at `key` rejects its settings; None for a bug."""
    line = first_line(error)
    if isinstance(error, TypeError) and key != "trainer":  # Lightning's Trainer raises errors of several types
        return None
    if isinstance(error, ImportError | TypeError):
        return f"{key}: {line}" if key else line
    if not isinstance(error, ValueError):
        return None
    from adlight.faults import describe_faults
    from adlight.settings import SettingsError  # with pydantic: not for --help

    if isinstance(error, SettingsError) and key:
        return describe_faults(error.faults, error.values, lambda argument: f"{key}.{argument}")
    # `tile=3 is ...` is completed to the full name of the setting
    return line if not key else f"{key}.{line}" if re.match(r"\w+=", line) else f"{key}: {line}"


def _factory_result(annotation: Any) -> type | None:
    """Return X for an annotation that contains `Callable[..., X]`."""
    if get_origin(annotation) is Callable:
        made = get_args(annotation)[1]
        return made if inspect.isclass(made) else None
    return next((kind for part in get_args(annotation) if (kind := _factory_result(part)) is not None), None)
