"""Overrides as Hydra reads them, made of what users give: values of Python, and a folder with configs of their own."""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from adlight.cli.arguments import quote
from adlight.runs.config import CONF
from adlight.runs.folder import RunFolder
from adlight.runs.overrides import choose_none
from adlight.types import UserError, unknown_name

PLAIN = re.compile(  # text that needs no quotes, and does not read as a number, a switch or nothing
    r"(?!(?:null|true|false|nan|inf)$)(?:[a-z_/]|\.\.?/)[\w/.-]*", re.ASCII | re.IGNORECASE
)
SHORTENED = ("dataset", "trainer", "model")  # nodes whose settings Python may name without the node


def to_override(key: str, value: Any) -> str:
    """Make an override of a value; no text needs quotes, whatever characters are in it.

    Raises:
        UserError: a value of a type that no config holds.
    """
    return f"{key}={_to_text(key, value)}"


def _to_text(key: str, value: Any) -> str:
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a scalar of NumPy or torch
        value = value.item()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, str | Path):
        return str(value) if PLAIN.fullmatch(str(value)) else quote("", value)[1:]
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_to_text(key, one)}" for name, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_to_text(key, one) for one in value) + "]"
    kind = type(value).__name__
    raise UserError(f"{key}: a {kind} cannot be a setting's value: give text, numbers, None, lists or dicts")


def add_settings(words: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """Add settings by name to overrides of a training; `root` alone stands for `dataset.root`, and so on.

    Raises:
        UserError: a name that several nodes have, or none, or a value of a type that no config holds.
    """
    exact = {key: value for key, value in settings.items() if re.search(r"\W", key) or (CONF / key).is_dir()}
    known = [*words, *(to_override(key, value) for key, value in exact.items())]
    rest = {key: value for key, value in settings.items() if key not in exact}
    if not rest:
        return known
    resumed = RunFolder(str(rest["resume"])) if rest.get("resume") else None
    if resumed is not None and resumed.is_run:
        config = resumed.read_config()
    else:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("train", [choose_none(word) for word in known])
    return [*known, *(to_override(_full_name(key, config), value) for key, value in rest.items())]


def _full_name(key: str, config: DictConfig) -> str:
    if key in list(config):
        return key
    nodes = {name: list(node) for name in SHORTENED if isinstance(node := config.get(name), DictConfig)}
    found = [name for name, keys in nodes.items() if key in keys]  # of a node, `in` is false where a value is missing
    if len(found) == 1:
        return f"{found[0]}.{key}"
    if found:
        names = " or ".join(f"{name}.{key}" for name in found)
        raise UserError(f'{key} could be {names}: name one as **{{"{found[0]}.{key}": ...}}')
    known = {str(name) for keys in (config, *nodes.values()) for name in keys}
    near = difflib.get_close_matches(key, known, cutoff=0.5) or sorted(map(str, nodes.get("dataset", known)))
    raise UserError(unknown_name("setting", key, [name for name in near if not name.startswith("_")]))


def use_config_dir(argv: Sequence[str]) -> list[str]:
    """Write `--config-dir <folder>` as an override, which all commands that come of this one keep.

    Raises:
        UserError: there is no such folder, or a config in it has the name of one of adlight's, which would be taken.
    """
    words, rest = list[str](), list(argv)
    while rest:
        word = rest.pop(0)
        flag, equals, folder = word.partition("=")
        if flag not in ("--config-dir", "-cd") or not (equals or rest):
            words.append(word)
            continue
        path = Path(folder if equals else rest.pop(0)).expanduser().absolute()
        if not path.is_dir():
            raise UserError(f"--config-dir {path}: there is no such folder")
        for own in sorted(path.rglob("*.yaml")):
            if (CONF / own.relative_to(path)).is_file():
                raise UserError(f"{own} has the name of a config of adlight, which would be taken: rename it")
        words.append(f"hydra.searchpath=[{quote('', path)[1:]}]")
    return words
