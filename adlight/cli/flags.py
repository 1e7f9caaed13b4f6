"""The flags of a command line, which are Hydra's, told from its overrides."""

from collections.abc import Sequence

from adlight.types import UserError

FLAGS_WITH_VALUES = {"--cfg", "-c", "--info", "-i", "--package", "-p", "--experimental-rerun"}
FLAGS_WITH_VALUES |= {"--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp"}
FLAGS_OF_HELP = {"--help", "-h", "--hydra-help", "--version"}
FLAGS_THAT_SHOW = FLAGS_OF_HELP | {"--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"}
MULTIRUN = ("-m", "--multirun")
KNOWN = {*FLAGS_WITH_VALUES, *FLAGS_THAT_SHOW, *MULTIRUN, "--resolve", "--run", "-r"}
KNOWN -= {"--config-name", "-cn", "--config-path", "-cp"}  # they would make another program of it


def mark_overrides(argv: Sequence[str]) -> list[tuple[str, bool]]:
    """Pair each word with whether it is an override: neither one of Hydra's flags nor the value of one."""
    pairs = zip(["", *argv], argv, strict=False)
    return [(word, not word.startswith("-") and before not in FLAGS_WITH_VALUES) for before, word in pairs]


def flags_first(argv: Sequence[str]) -> list[str]:
    """Put flags before overrides, as argparse takes no overrides on both sides of one."""
    return [word for word, _ in sorted(mark_overrides(argv), key=lambda pair: pair[1])]


def refuse_unknown_flags(argv: Sequence[str]) -> None:
    """Refuse `--seed 1`, of which Hydra would only print how it is called.

    Raises:
        UserError: a flag that there is not.
    """
    for before, word in zip(["", *argv], argv, strict=False):
        flag = word.partition("=")[0]
        if word.startswith("-") and before not in FLAGS_WITH_VALUES and flag not in KNOWN:
            setting = f"{flag.lstrip('-')}=<value>" if flag.strip("-") else "<name>=<value>"
            raise UserError(f"there is no flag {flag}: settings have no dashes, such as {setting}")


def shows_help(argv: Sequence[str]) -> bool:
    """Tell whether a command line only asks for help."""
    return not FLAGS_OF_HELP.isdisjoint(argv)
