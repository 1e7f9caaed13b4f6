"""The words of a command line before Hydra parses them: flags, overrides and their quotes."""

from collections.abc import Sequence
from pathlib import Path

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
PATHS = ("root", "normal_dir", "abnormal_dir", "mask_dir", "test_normal_dir", "roi", "check", *PLACES)


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
    """Raise a UserError for a word without a name, an empty path, or a config chosen by its path."""
    for word in argv:
        key, equals, value = word.partition("=")
        if not key:
            raise UserError(f"{word!r} is not a setting: write <name>=<value>, such as model=retrieval")
        if value.startswith("../") and (CONF / key).is_dir():
            raise UserError(f"{word}: {key} is chosen by a name, such as {min((CONF / key).glob('[a-z]*.yaml')).stem}")
        if equals and key.lstrip("+") in PLACES and not value.strip("'\" "):
            raise UserError(f"{word} is empty: give {key}=<a path>, or leave it out")


def check_flags(argv: Sequence[str]) -> None:
    """Raise a UserError for an unknown flag, such as `--seed 1`, for which Hydra would only print its usage."""
    for previous, word in zip(["", *argv], argv, strict=False):
        flag = word.partition("=")[0]
        if word.startswith("-") and previous not in FLAGS_WITH_VALUES and flag not in KNOWN_FLAGS:
            setting = f"{flag.lstrip('-')}=<value>" if flag.strip("-") else "<name>=<value>"
            raise UserError(f"there is no flag {flag}: settings have no dashes, such as {setting}")


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
    return [*words, quote("resume", folder), quote("hydra.run.dir", folder), "hydra.output_subdir=null"]


def quote(key: str, value: Path | str) -> str:
    """Format an override whose value may contain any characters."""
    return f"{key}={quote_value(value)}"


def quote_value(value: Path | str) -> str:
    """Quote a value for Hydra's grammar."""
    return QuotedString(str(value), Quote.single).with_quotes()


def quote_values(argv: Sequence[str], *keys: str, lists: bool = False) -> list[str]:
    """Quote the values of some keys unless they are quoted, null or (with `lists`) a list in brackets."""
    words = []
    for word in argv:
        key, _, value = word.partition("=")
        literal = value == "null" or value[:1] in ("'", '"') or (lists and value[:1] == "[")
        words.append(quote(key, value) if key in keys and not literal else word)
    return words


def quote_folders(argv: Sequence[str]) -> list[str]:
    """Quote paths that Hydra's grammar cannot parse or would parse as numbers, as in `dataset.root=Größe (1)`."""
    words = []
    for word, is_override in mark_overrides(argv):
        key, _, value = word.partition("=")
        is_path = is_override and {key, key.rpartition(".")[2]} & set(PATHS) and value[:1] not in ("'", '"', "[", "")
        words.append(quote(key, value) if is_path and not _reads_as_text(word) else word)
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
