"""Check the settings of a config against the constructors that take them, before anything is built or read."""

import inspect
import re
from collections.abc import Collection, Mapping, Sequence
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
    arguments = {name: value for name, value in node.items() if not name.startswith("_")}
    given, called = {*arguments, *supplied}, [target]
    part = node.get(receiver) if (receiver := receiver_of(target)) else None
    if isinstance(part, dict) and "_target_" in part:
        called.append(find_target(part, f"{key}.{receiver}"))
        given |= part.keys()
    try:
        names, required = _read_signatures(called)
    except Exception:  # a target has no signature
        return

    def full_name(argument: str) -> str:
        source = INTERPOLATION.fullmatch(str(written.get(argument)))
        return source[1] if source else f"{key}.{argument}"

    if is_checked(target):
        check_factories(arguments, target, key)
    if unknown := [name for name in arguments if names is not None and name not in names]:
        parent = full_name(unknown[0]).rpartition(".")[0]
        raise UserError(unknown_name(f"setting in {parent}", unknown[0], sorted(names or ())))
    types = {name: kind for maker in reversed(called) for name, kind in schema.types_of(maker).items()}
    check_types(types, {name: value for name, value in arguments.items() if not _is_unresolved(value)}, full_name)
    is_complete = not node.get("_partial_") and "_args_" not in node
    if missing := [name for name in required if is_complete and name not in given]:
        raise UserError(f"{full_name(missing[0])} must be given")
    if schema.is_optimizer(target):
        schema.try_optimizer(target, arguments, key)


def _read_signatures(called: Sequence[Any]) -> tuple[set[str] | None, list[str]]:
    """Read what a constructor takes, and the part to which it passes on all other arguments.

    Returns:
        The names of all arguments, None if any name is taken; and those that are required and whose types are known.
    """
    names, required, takes_any = set[str](), list[str](), False
    for target in called:
        for parameter in inspect.signature(target).parameters.values():
            if parameter.kind == parameter.VAR_KEYWORD:
                takes_any |= target is called[-1]
            elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                names.add(parameter.name)
                if parameter.default is parameter.empty and schema.types_of(target):
                    required.append(parameter.name)
    return None if takes_any else names, required


def _is_unresolved(value: Any) -> bool:
    # a node or an interpolation, whose value is not known yet
    if isinstance(value, dict):
        return "_target_" in value or any(map(_is_unresolved, value.values()))
    if isinstance(value, list):
        return any(map(_is_unresolved, value))
    return isinstance(value, str) and "${" in value
