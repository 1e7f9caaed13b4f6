"""Check the settings of a config against the constructors that take them, before anything is built or read."""

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from adlight.runs import schema
from adlight.runs.config import CONF, read_yaml
from adlight.runs.programs import check_types, check_values
from adlight.runs.targets import GROUPS, KEYWORDS, KINDS, check_factories, find_target
from adlight.settings import is_checked, receiver_of
from adlight.types import UserError, unknown_name

INTERPOLATION = re.compile(r"\$\{(\w[\w.]*)\}")
SUPPLIED = {"checkpoint": ("last",)}  # arguments that the program adds to a node's own


def check_settings(config: DictConfig) -> None:
    """Raise a UserError for a setting of a training that is unknown, missing, of the wrong type or out of range."""
    check_values(config)
    if config.get("dataset") is not None and config.dataset.get("keep_shape") == "auto":
        config = config.copy()
        config.dataset.keep_shape = False  # decided later, by the shapes of the images
    for name in KINDS:
        nodes = {name: config.get(name)}
        if name in GROUPS and isinstance(nodes[name], DictConfig):
            nodes = {f"{name}.{key}": node for key, node in nodes[name].items()}
        for key, node in nodes.items():
            if node is None:
                continue
            if not isinstance(node, DictConfig) or "_target_" not in node:
                raise UserError(f"{key} must be a node with _target_, got {str(node)!r}")
            check_node(node, SUPPLIED.get(name, ()))


def check_names(config: DictConfig) -> None:
    """Raise a UserError for a top-level setting that nothing reads, such as `+max_epochs=3`."""
    programs, text = ("train", "federate") if "sites" in config else ("train",), OmegaConf.to_yaml(config)
    known = {*KINDS, *(str(name) for program in programs for name in read_yaml(CONF / f"{program}.yaml"))}
    for name in map(str, config):
        if name not in known and f"${{{name}" not in text:
            raise UserError(f"{unknown_name('setting', name, sorted(known - {'defaults', 'hydra'}))}; nothing reads it")


def check_node(node: DictConfig, supplied: Collection[str] = ()) -> None:
    """Check the arguments of a node and of all nodes in it, see `check_settings`.

    Args:
        node: a node with `_target_`, or a mapping of such nodes.
        supplied: arguments that the caller will add.
    """
    written, key = OmegaConf.to_container(node), str(node._get_full_key(None))
    try:
        values = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except InterpolationResolutionError:
        _check(written, written, key, supplied)  # reports a bad setting that may be the reason
        raise
    _check(values, written, key, supplied)


def _check(values: Any, written: Any, key: str, supplied: Collection[str]) -> None:
    """Check all nodes in `values`; `written` is the same config with unresolved interpolations."""
    if isinstance(values, list):
        values, written = dict(enumerate(values)), dict(enumerate(written))
    if not isinstance(values, dict) or not isinstance(written, dict):
        return
    if "_target_" in values:
        _check_call(values, written, key, supplied)
    for name, value in values.items():
        _check(value, written.get(name), f"{key}.{name}" if key else str(name), supplied)


def _check_call(node: Mapping[str, Any], written: Mapping[str, Any], key: str, supplied: Collection[str]) -> None:
    """Check a node's arguments, including those that its constructor passes on to one of its parts."""
    target = find_target(node, key)
    if others := [name for name in node if name.startswith("_") and name not in KEYWORDS]:
        raise UserError(f"{key}.{others[0]} does not exist here: leave it out")
    try:
        (names, _), receiver = _read_signature(target), receiver_of(target)
    except Exception:  # the target has no signature
        return

    def full_name(argument: str) -> str:
        source = INTERPOLATION.fullmatch(str(written.get(argument)))
        return source[1] if source else f"{key}.{argument}"

    arguments = {name: value for name, value in node.items() if not name.startswith("_")}
    present = {*arguments, *supplied}
    own = {name: value for name, value in arguments.items() if names is None or name in names or not receiver}
    if is_checked(target):
        check_factories(arguments, target, key)
    is_complete = not node.get("_partial_") and "_args_" not in node
    _check_arguments(target, own, present if is_complete else None, full_name)
    part = node.get(receiver) if receiver else None
    if isinstance(part, dict) and "_target_" in part:
        passed_on = {name: value for name, value in arguments.items() if name not in own}
        part_target = find_target(part, f"{key}.{receiver}")
        _check_arguments(part_target, passed_on, {*present, *part}, full_name, names or ())
    if schema.is_optimizer(target):
        schema.try_optimizer(target, arguments, key)


def _check_arguments(
    target: Any,
    values: Mapping[str, Any],
    present: Collection[str] | None,
    full_name: Callable[[str], str],
    others: Collection[str] = (),
) -> None:
    """Check values against a target's signature.

    Args:
        target: a class or function.
        values: values of arguments, by name.
        present: names of all arguments that it will receive; None if unknown.
        full_name: returns the full name of the setting for an argument.
        others: further names that are allowed in the node.
    """
    names, required = _read_signature(target)
    types = schema.types_of(target)
    if unknown := [name for name in values if names is not None and name not in names]:
        parent = full_name(unknown[0]).rpartition(".")[0]
        raise UserError(unknown_name(f"setting in {parent}", unknown[0], sorted({*(names or ()), *others})))
    check_types(types, {name: value for name, value in values.items() if not _is_unresolved(value)}, full_name)
    if missing := [name for name in required if types and present is not None and name not in present]:
        raise UserError(f"{full_name(missing[0])} must be given")


def _read_signature(target: Any) -> tuple[list[str] | None, list[str]]:
    """Return the names of a target's arguments, or None if it takes any, and the names of the required ones."""
    parameters = inspect.signature(target).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters) and not receiver_of(target)
    return None if takes_any else [p.name for p in named], [p.name for p in named if p.default is p.empty]


def _is_unresolved(value: Any) -> bool:
    # a node or an interpolation, whose value is not known yet
    if isinstance(value, dict):
        return "_target_" in value or any(map(_is_unresolved, value.values()))
    if isinstance(value, list):
        return any(map(_is_unresolved, value))
    return isinstance(value, str) and "${" in value
