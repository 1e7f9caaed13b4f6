"""What is wrong with a config or an override, in one line of ours."""

from collections.abc import Sequence

from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from adlight.runs.config import CONF
from adlight.types import unknown_name

EXTRAS = {"optuna": "optuna", "joblib": "joblib", "ray": "ray", "submitit_slurm": "slurm"}  # plugins of Hydra


def explain_config(error: BaseException) -> str:
    """Give one line for an unknown name, a missing value or an override that cannot be read."""
    if isinstance(error, OverrideParseException):
        if "=" not in str(error.override):
            return f"{error.override!r} is no setting: write <name>=<value>, such as model=retrieval"
        return (
            f"cannot read the override {error.override!r}: values with any of = # ~ ( ) [ ] {{ }} or spaces need "
            "quotes inside quotes, such as 'dataset.root=\"my folder\"'"
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if name in EXTRAS:
            return f"{group}/{name} is not installed: pip install 'adlight[{EXTRAS[name]}]'"
        return _unknown(group or "config", name, error.options or [])
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value: give one with {error.full_key}=<value>"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, InterpolationResolutionError):
        return f"{cause.full_key}: {str(cause).splitlines()[0]}"
    node = cause.parent_node if isinstance(cause, OmegaConfBaseException) else None
    if isinstance(node, DictConfig) and isinstance(cause, OmegaConfBaseException) and cause.key is not None:
        if cause.key in node:  # it is the value
            return f"{cause.full_key}: {str(cause).splitlines()[0]}"
        key, known = str(cause.key), list(map(str, node))
        parent, _, _ = (cause.full_key or key).rpartition(".")
        if not parent and "model" in known:  # groups that leave no key of their name, such as `experiment`
            known += [path.name for path in CONF.iterdir() if path.is_dir()]
        if parent and not known:
            return f"{cause.full_key} cannot be set: {parent} is null in this config, of this model or data set"
        return _unknown(f"setting in {parent}" if parent else "setting", key, known)
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, ConfigCompositionException) and cause is not None:  # it names the override, not what is wrong
        line = f"{line}: {str(cause).splitlines()[0]}"
    if "An item is already at" in line:
        line += " Leave out the + in front"
    hint = "; -m makes a run for each of several values, [1,2] is a list" if line.startswith("Ambiguous value") else ""
    return line + hint


def _unknown(kind: str, name: str, known: Sequence[str]) -> str:
    return unknown_name(kind, name, sorted({choice for choice in known if not choice.startswith("_")}))
