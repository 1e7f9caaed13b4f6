"""Settings of a config compared with what its constructors take, before any of them is called and anything is read."""

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from adlight.runs.targets import GROUPS, KINDS, check_kind, check_makers, find_target
from adlight.types import UserError, unknown_name

if TYPE_CHECKING:  # it takes time to import: not for --help
    from pydantic import TypeAdapter

INTERPOLATION = re.compile(r"\$\{(\w[\w.]*)\}")
HOW = {"_convert_": ("all", "none", "partial", "object"), "_recursive_": (True,)}  # Hydra makes a node
GIVEN = {"checkpoint": ("last",)}  # by the program


def check_settings(config: DictConfig) -> None:
    """Check all that a training is made of.

    Raises:
        UserError: a setting that does not exist, is missing, of the wrong type or out of range; the message names it.
    """
    from adlight.runs.programs import TrainSettings

    check_values(TrainSettings, config)
    if config.get("dataset") is not None and config.dataset.get("keep_shape") == "auto":
        config = config.copy()
        config.dataset.keep_shape = False  # what the images' shapes make of it
    for name in KINDS:
        node = config.get(name)
        several = name in GROUPS and isinstance(node, DictConfig)
        for key, one in ((f"{name}.{key}", one) for key, one in node.items()) if several else ((name, node),):
            if one is not None:
                _require_target(one, key)
                check_node(one, GIVEN.get(name, ()))


def check_names(config: DictConfig) -> None:
    """Refuse settings of a training's own that nothing reads, such as `+max_epochs=3`; others may refer to new ones.

    Raises:
        UserError: there is one.
    """
    from adlight.runs.programs import FederateSettings, TrainSettings

    known, text = {*TrainSettings.__annotations__, *KINDS, "hydra"}, OmegaConf.to_yaml(config)
    known |= {*FederateSettings.__annotations__} if "sites" in config else set()
    for name in map(str, config):
        if name not in known and f"${{{name}" not in text:
            raise UserError(f"{unknown_name('setting', name, sorted(known - {'hydra'}))}; nothing reads it")


def _require_target(node: Any, name: str) -> None:
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise UserError(f"{name} must be a node with _target_, got {str(node)!r}")


def check_values(settings: type, config: DictConfig) -> None:
    """Check a command's own settings, whose types a TypedDict holds.

    Raises:
        UserError: one is of the wrong type or out of range.
    """
    from adlight.settings import types_of

    types = types_of(settings)
    found = {name: config.get(name) for name in types if name in config and not OmegaConf.is_missing(config, name)}
    _refuse(types, {name: _plain(value) for name, value in found.items()}, str)


def check_node(node: DictConfig, given: Collection[str] = ()) -> None:
    """Check a node's arguments and those of all nodes in it.

    Args:
        node: with a `_target_`, or of such nodes.
        given: arguments that the caller adds.

    Raises:
        UserError: as `check_settings`.
    """
    check_kind(node)
    written, key = OmegaConf.to_container(node), str(node._get_full_key(None))
    try:
        values = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except InterpolationResolutionError:
        _check(written, written, key, given)  # perhaps because of what it points to
        raise
    _check(values, written, key, given)


def _check(values: Any, written: Any, path: str, given: Collection[str] = ()) -> None:
    if isinstance(values, list):
        values, written = dict(enumerate(values)), dict(enumerate(written))
    if not isinstance(values, dict) or not isinstance(written, dict):
        return
    if "_target_" in values:
        _check_call(values, written, path, given)
    for name, below in values.items():
        _check(below, written.get(name), f"{path}.{name}" if path else str(name))


def _check_call(node: Mapping[str, Any], written: Mapping[str, Any], path: str, given: Collection[str]) -> None:
    """Check one node's own arguments, and those that its constructor hands on to another of them."""
    from adlight.runs.optimizers import is_optimizer, try_optimizer
    from adlight.settings import is_checked, receiver_of

    target = find_target(node, path)
    for name, allowed in HOW.items():
        if (value := node.get(name, allowed[0])) not in allowed:
            raise UserError(f"{path}.{name}={value} must be {' or '.join(map(str, allowed)).lower()}: leave it out")
    try:
        (names, _), receives = _arguments_of(target), receiver_of(target)
    except Exception:  # none with a signature
        return

    def full_name(argument: str) -> str:
        source = INTERPOLATION.fullmatch(str(written.get(argument)))
        return source[1] if source else f"{path}.{argument}"

    arguments = {name: value for name, value in node.items() if not name.startswith("_")}
    present = {*arguments, *given}
    own = {name: value for name, value in arguments.items() if names is None or name in names or not receives}
    if is_checked(target):
        check_makers(arguments, target, path)
    complete = not node.get("_partial_") and "_args_" not in node
    _check_arguments(target, own, present if complete else None, full_name)
    if receives and isinstance(receiver := node.get(receives), dict) and "_target_" in receiver:
        handed = {name: value for name, value in arguments.items() if name not in own}
        _check_arguments(
            find_target(receiver, f"{path}.{receives}"), handed, {*present, *receiver}, full_name, names or ()
        )
    if is_optimizer(target):
        try_optimizer(target, arguments, path)


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
        values: those to check.
        present: the names of all that it will get; None if that is not known.
        full_name: makes a setting's full name of an argument's.
        others: names that may stand in the same node.
    """
    from adlight.runs import schema

    names, required = _arguments_of(target)
    types = schema.types_of(target)
    if unknown := [name for name in values if names is not None and name not in names]:
        parent = full_name(unknown[0]).rpartition(".")[0]
        raise UserError(unknown_name(f"setting in {parent}", unknown[0], sorted({*(names or ()), *others})))
    _refuse(types, {name: value for name, value in values.items() if not _is_open(value)}, full_name)
    if missing := [name for name in required if types and present is not None and name not in present]:
        raise UserError(f"{full_name(missing[0])} must be given")


def _arguments_of(target: Any) -> tuple[Collection[str] | None, list[str]]:
    """Look up which arguments a target takes, None if any but for those that it hands on, and which it must have."""
    from adlight.settings import receiver_of

    parameters = inspect.signature(target).parameters.values()
    named = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    takes_any = any(one.kind == one.VAR_KEYWORD for one in parameters) and not receiver_of(target)
    return None if takes_any else [one.name for one in named], [one.name for one in named if one.default is one.empty]


def _refuse(types: Mapping[str, "TypeAdapter"], values: Mapping[str, Any], full_name: Callable[[str], str]) -> None:
    from adlight.faults import describe_faults
    from adlight.settings import find_faults

    if faults := find_faults(types, values):
        raise UserError(describe_faults(faults, values, full_name))


def _is_open(value: Any) -> bool:
    """Tell whether a value is not known yet: it holds a node, or an interpolation."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    unknown = "_target_" in value if isinstance(value, dict) else isinstance(value, str) and "${" in value
    return unknown or any(map(_is_open, inner))


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
