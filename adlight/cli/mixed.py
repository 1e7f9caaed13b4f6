"""Sweeps over models or data sets of which some lack a setting that is given: it applies to those that have it."""

from collections.abc import Mapping, Sequence

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from adlight.runs.config import CONF
from adlight.runs.overrides import explain_config
from adlight.types import UserError, unknown_name

LIST = "partial_settings"  # of train.yaml: those that a job leaves out where its model, or data set, lacks them


def mark_partial_settings(words: Sequence[str]) -> list[str]:
    """Let Hydra take a setting of a swept group that not all of the group's choices have, and list it for the jobs.

    Args:
        words: overrides and flags of a multirun.

    Raises:
        UserError: none of the choices has it, or there is no such choice.
    """
    overrides = [word for word in words if not word.startswith(("-", "hydra."))]
    parsed = dict(zip(overrides, OverridesParser.create().parse_overrides(overrides), strict=True))
    swept = {one.key_or_group: list(map(str, one.sweep_string_iterator())) for one in parsed.values() if _sweeps(one)}
    settings = {word: one.key_or_group for word, one in parsed.items() if word[0] not in "+~"}
    settings = {word: key for word, key in settings.items() if "." in key and key.split(".")[0] in swept}
    if not settings:
        return list(words)
    groups = [word for word, one in parsed.items() if (CONF / one.key_or_group).is_dir() and not _sweeps(one)]
    groups += [word for word in words if word.startswith("hydra.searchpath=")]
    configs: dict[str, dict[str, DictConfig]] = {}
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            for name in {key.split(".")[0] for key in settings.values()}:
                configs[name] = {choice: compose("train", [*groups, f"{name}={choice}"]) for choice in swept[name]}
    except HydraException as error:  # a name that there is not
        raise UserError(explain_config(error)) from error
    partial = [key for key in settings.values() if not _in_all(configs[key.split(".")[0]], key)]
    # marked as additions, as the command's own config is of the default model, which may lack them too
    marked = [f"++{word}" if word in settings else word for word in words]
    return [*marked, f"{LIST}=[{','.join(dict.fromkeys(partial))}]"] if partial else marked


def lacking_settings(overrides: Sequence[str]) -> dict[str, str]:
    """Find which settings of a job's overrides its own model, or data set, lacks. -> that choice by setting."""
    words = [word.partition("=")[2] for word in overrides if word.startswith(f"{LIST}=")]
    listed = {key: key.split(".")[0] for key in words[-1].strip("[]").split(",")} if words else {}
    if not listed:
        return {}
    choices = HydraConfig.get().runtime.choices
    own = compose("train", [f"{group}={choices[group]}" for group in sorted(set(listed.values()))])
    return {key: f"{group}={choices[group]}" for key, group in listed.items() if not _has(own, key)}


def leave_out_lacking_settings(config: DictConfig) -> None:
    """Remove from a job's config the listed settings that its own model, or data set, lacks, and say so."""
    for key, choice in lacking_settings(HydraConfig.get().overrides.task).items():
        parent, _, name = key.rpartition(".")
        if isinstance(OmegaConf.select(config, parent), DictConfig):
            print(f"{key}={OmegaConf.select(config, key)} is left out: {choice} has no such setting", flush=True)
        with open_dict(config):
            while isinstance(node := OmegaConf.select(config, parent) if parent else None, DictConfig):
                node.pop(name, None)
                if node:
                    break
                parent, _, name = parent.rpartition(".")  # a node that the setting alone had made


def _in_all(configs: Mapping[str, DictConfig], key: str) -> bool:
    having = [choice for choice, config in configs.items() if _has(config, key)]
    if not having:
        parent, _, name = key.rpartition(".")
        known = {str(one) for config in configs.values() for one in OmegaConf.select(config, parent) or ()}
        said = unknown_name(f"setting in {parent}", name, sorted(one for one in known if not one.startswith("_")))
        raise UserError(f"{said}; none of {', '.join(configs)} has it")
    return len(having) == len(configs)


def _sweeps(one: Override) -> bool:
    """Tell whether an override sweeps over choices of a group."""
    return one.is_sweep_override() and (CONF / one.key_or_group).is_dir() and one.is_choice_sweep()


def _has(config: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent)
    return isinstance(node, DictConfig) and name in list(node)
