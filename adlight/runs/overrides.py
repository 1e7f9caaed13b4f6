"""Apply overrides to a run's config, and explain bad ones. Hydra is imported in functions: not all programs need it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from adlight.runs.config import CONF, INPUT_KEYS, flatten
from adlight.types import UserError, first_line, unknown_name

EXTRAS = {"optuna": "optuna", "joblib": "joblib", "ray": "ray", "submitit_slurm": "slurm"}  # for Hydra's plugins
SEARCH_PATH = "hydra.searchpath="
CHANGE_SCORES = (
    *("model", "dataset", "trainer=", "trainer.precision"),
    *("calibration.image", "calibration.pixel", "calibration.folds", "calibration.asked"),
)


def changes_scores(overrides: Iterable[str]) -> bool:
    """Return whether overrides of a run may change the scores of normal images, which invalidates its thresholds."""
    return any(word.lstrip("+").startswith(CHANGE_SCORES) for word in overrides)


def search_path() -> list[str]:
    """Return the override by which the present command finds the user's own configs, if there is one."""
    from hydra.core.hydra_config import HydraConfig

    words = HydraConfig.get().overrides.hydra if HydraConfig.initialized() else []
    return [word for word in words if word.startswith(SEARCH_PATH)]


def compose_config(program: str, words: Iterable[str]) -> DictConfig:
    """Compose a program's config from the words of its command line, without flags and Hydra's own settings."""
    from hydra import compose, initialize_config_dir

    used = [word for word in words if not word.startswith(("hydra.", "-")) or word.startswith(SEARCH_PATH)]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(program, used)


def choose_none(override: str) -> str:
    """Replace `callbacks=null`, which Hydra rejects, by the group's choice `none`; raise a UserError without one."""
    key, _, value = override.partition("=")
    if value != "null" or not (CONF / key).is_dir() or not key:
        return override
    if not (CONF / key / "none.yaml").exists():
        raise UserError(f"{override}: there is no empty choice of {key}; name one, or leave {override} out")
    return f"{key}=none"


def apply_overrides(config: DictConfig, choices: Mapping[str, Any], overrides: Sequence[str]) -> DictConfig:
    """Apply overrides to a copy of a run's config. Hydra must be initialized with our conf/.

    A value replaces the value of an existing key. A group (`trainer=gpu`, `dataset=mvtec`) is composed again with the
    run's other `choices`, and keeps the values that the run has set explicitly; a data set keeps only `INPUT_KEYS`, for
    which the run's network was built.

    Raises:
        omegaconf.errors.OmegaConfBaseException: a key does not exist.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    config = config.copy()
    OmegaConf.set_struct(config, True)
    groups = {str(name) for name in config if (CONF / str(name)).is_dir()}
    choices = {name: choice for name, choice in choices.items() if name in groups}
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    parsed.sort(key=lambda override: override.key_or_group not in groups)  # groups first, as in Hydra
    for override in parsed:
        key, value = override.key_or_group, override.value()
        if key in groups:
            node = _compose_node(key, {**choices, key: value})
            if key == "dataset":
                node.update({name: config.dataset.get(name) for name in INPUT_KEYS})
            else:
                new, default = flatten(node), flatten(_compose_node(key, choices))
                for path, current in flatten(config[key]).items():
                    if path in new and current != default.get(path):  # set explicitly
                        OmegaConf.update(node, path, current)
            OmegaConf.update(config, key, node, merge=False, force_add=True)
        else:
            OmegaConf.update(config, key, value)
    return config


def _compose_node(name: str, choices: Mapping[str, Any]) -> DictConfig:
    from hydra import compose

    return compose("train", [*search_path(), *(f"{group}={choice}" for group, choice in choices.items())])[name]


def explain_config(error: BaseException) -> str:
    """Explain an error of Hydra or OmegaConf in one line: an unknown name, a missing value, an unreadable override."""
    from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException

    if isinstance(error, OverrideParseException):
        if "=" not in str(error.override):
            return f"{error.override!r} is not a setting: write <name>=<value>, such as model=retrieval"
        return (
            f"cannot read the override {error.override!r}: values with any of = # ~ ( ) [ ] {{ }} or spaces need "
            "quotes inside quotes, such as 'title=\"runs (1)\"'"
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if name in EXTRAS:
            return f"{group}/{name} is not installed: pip install 'adlight[{EXTRAS[name]}]'"
        return _unknown(group or "config", name, error.options or [])
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value: set {error.full_key}=<value>"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, InterpolationResolutionError):
        return f"{cause.full_key}: {first_line(cause)}"
    node = cause.parent_node if isinstance(cause, OmegaConfBaseException) else None
    if isinstance(cause, OmegaConfBaseException) and isinstance(node, DictConfig) and cause.key is not None:
        return _explain_key(cause, node)
    line = first_line(error)
    if isinstance(error, ConfigCompositionException) and cause is not None:  # its text only names the override
        line = f"{line}: {first_line(cause)}"
    if "No match in the defaults list" in line:
        key, why = line.split("'")[1], "this model or data set has no such choice"
        return f"unknown setting {key!r}: {why} (if sweep=<name> has set it: hydra.sweeper.params=null)"
    if "An item is already at" in line:
        line += " Leave out the + in front"
    hint = "; -m makes a run for each of several values, [1,2] is a list" if line.startswith("Ambiguous value") else ""
    return line + hint


def _explain_key(error: OmegaConfBaseException, node: DictConfig) -> str:
    """Explain why the value of a key cannot be set, or that a node has no such key."""
    if error.key in node:
        return f"{error.full_key}: {first_line(error)}"
    key, known = str(error.key), list(map(str, node))
    parent, _, _ = (error.full_key or key).rpartition(".")
    if not parent and "model" in known:
        known += [path.name for path in CONF.iterdir() if path.is_dir()]  # not all groups are keys of the config
    nested = [path for path in flatten(node) if path.endswith(f".{key}")]
    if nested and not parent:
        return f"unknown setting {key!r}; did you mean {' or '.join(nested[:3])}?"
    if parent and not known:
        return f"{error.full_key} cannot be set: {parent} is null in this config, of this model or data set"
    return _unknown(f"setting in {parent}" if parent else "setting", key, known)


def _unknown(kind: str, name: str, known: Sequence[str]) -> str:
    return unknown_name(kind, name, sorted({choice for choice in known if not choice.startswith("_")}))
