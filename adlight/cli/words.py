"""The words of a command line before Hydra parses them: flags, overrides and their quotes."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from adlight.runs.config import CONF
from adlight.types import UserError

FLAGS_WITH_VALUES = {"--cfg", "-c", "--info", "-i", "--package", "-p", "--experimental-rerun"}
FLAGS_WITH_VALUES |= {"--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp"}
HELP_FLAGS = {"--help", "-h", "--hydra-help", "--version"}
INFO_FLAGS = HELP_FLAGS | {"--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"}  # nothing runs with them
MULTIRUN = ("-m", "--multirun")
KNOWN_FLAGS = {*FLAGS_WITH_VALUES, *INFO_FLAGS, *MULTIRUN, "--resolve", "--run", "-r"}
KNOWN_FLAGS -= {"--config-name", "-cn", "--config-path", "-cp"}  # they would select the config of another program
PLACES = ("run", "runs", "images", "labels", "resume", "out", "ckpt", "run_dir", "hydra.run.dir", "hydra.sweep.dir")
PATHS = ("root", "normal_dir", "abnormal_dir", "mask_dir", "test_normal_dir", "roi", *PLACES)
LISTS = ("runs", "reference", "save")  # texts, or lists of them in brackets
TEXTS = ("run", "images", "labels", "root", "check", "token", "out", "title", *LISTS)
UNQUOTED = re.compile(  # text that needs no quotes and does not look like a number, bool or null
    r"(?!(?:null|true|false|nan|inf)$)(?:[a-z_/]|\.\.?/)[\w/.-]*", re.ASCII | re.IGNORECASE
)


def mark_overrides(argv: Sequence[str]) -> list[tuple[str, bool]]:
    """Pair each word with whether it is an override: neither a flag of Hydra's nor a flag's value."""
    pairs = zip(["", *argv], argv, strict=False)
    return [(word, not word.startswith("-") and previous not in FLAGS_WITH_VALUES) for previous, word in pairs]


def flags_first(argv: Sequence[str]) -> list[str]:
    """Put flags before overrides: argparse does not accept overrides on both sides of a flag."""
    return [word for word, _ in sorted(mark_overrides(argv), key=lambda pair: pair[1])]


def shows_info(argv: Sequence[str]) -> bool:
    """Return whether a command line only asks for help or for a config to be shown."""
    return any(word.partition("=")[0] in INFO_FLAGS for word in argv)


def is_multirun(argv: Sequence[str]) -> bool:
    """Return whether a command line starts a sweep."""
    return not set(MULTIRUN).isdisjoint(argv) or value_of(argv, "sweep") is not None


def check_words(argv: Sequence[str]) -> None:
    """Raise a UserError for an unknown flag, a word without a name, an empty path, or a config chosen by its path."""
    for word, is_override in mark_overrides(argv):
        key, equals, value = word.partition("=")
        if not is_override:
            if word.startswith("-") and key not in KNOWN_FLAGS:
                setting = f"{key.lstrip('-')}=<value>" if key.strip("-") else "<name>=<value>"
                raise UserError(f"there is no flag {key}: settings have no dashes, such as {setting}")
            continue
        if not key:
            raise UserError(f"{word!r} is not a setting: write <name>=<value>, such as model=retrieval")
        if value.startswith("../") and (CONF / key).is_dir():
            raise UserError(f"{word}: {key} is chosen by a name, such as {min((CONF / key).glob('[a-z]*.yaml')).stem}")
        if equals and key.lstrip("+") in PLACES and not value.strip("'\" "):
            raise UserError(f"{word} is empty: give {key}=<a path>, or leave it out")


def value_of(argv: Sequence[str], key: str) -> str | None:
    """Return the value of the last `key=value` among the words, without quotes; None if there is none or it is null."""
    value = next((word.partition("=")[2] for word in argv[::-1] if word.startswith(f"{key}=")), "null")
    if value == "null":
        return None
    return value[1:-1].replace("\\'", "'") if value[:1] == value[-1:] == "'" else value.strip("'\"")


def require(argv: Sequence[str], key: str, example: str) -> str:
    """Return a setting's value; if it is missing, raise a UserError that shows `example`, the command's words."""
    if (value := value_of(argv, key)) is None:
        raise UserError(f"{key} is missing: adlight {example}")
    return value


def continue_in(argv: Sequence[str], folder: Path | str) -> list[str]:
    """Make a command continue in the folder of an earlier one, and keep the config that is stored there."""
    words = [word for word in argv if not word.startswith(("resume=", "hydra.run.dir="))]
    return [*words, to_override("resume", folder), to_override("hydra.run.dir", folder), "hydra.output_subdir=null"]


def quote_value(value: Path | str) -> str:
    """Quote a value for Hydra's grammar."""
    return QuotedString(str(value), Quote.single).with_quotes()


def to_override(key: str, value: Any) -> str:
    """Format a Python value as an override, with quotes if needed; raise a UserError if a config cannot hold it."""
    return f"{key}={_format_value(key, value)}"


def _format_value(key: str, value: Any) -> str:
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a NumPy or torch scalar
        value = value.item()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, str | Path):
        return str(value) if UNQUOTED.fullmatch(str(value)) else quote_value(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_format_value(key, item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_format_value(key, item) for item in value) + "]"
    kind = type(value).__name__
    raise UserError(f"{key}: a value of type {kind} cannot be a setting: give text, numbers, None, lists or dicts")


def quote_values(argv: Sequence[str]) -> list[str]:
    """Quote texts, and paths that Hydra's grammar cannot parse or would parse as numbers: `dataset.root=Größe (1)`."""
    words = []
    for word, is_override in mark_overrides(argv):
        key, _, value = word.partition("=")
        is_list = value[:1] == "[" and value[-1:] == "]" and (key in LISTS or key not in TEXTS)
        is_literal = value in ("", "null") or value[0] in "'\"" or is_list
        is_path = not {key, key.rpartition(".")[2]}.isdisjoint(PATHS)
        if is_override and not is_literal and (key in TEXTS or (is_path and not _reads_as_text(word))):
            word = to_override(key, value)
        words.append(word)
    return words


def _reads_as_text(word: str) -> bool:
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return override.is_sweep_override() or not isinstance(override.value(), (bool, int, float))


def use_config_dir(argv: Sequence[str]) -> list[str]:
    """Replace `--config-dir <folder>` by an override, which further commands for the same run will repeat.

    Raises:
        UserError: the folder does not exist, or one of its configs has the name of an adlight config, which would win.
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
        for file in sorted(path.rglob("*.yaml")):
            if (CONF / file.relative_to(path)).is_file():
                raise UserError(f"{file} has the name of a config of adlight, which would be used instead: rename it")
        words.append(f"hydra.searchpath=[{quote_value(path)}]")
    return words
