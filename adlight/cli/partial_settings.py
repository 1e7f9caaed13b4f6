"""Settings of a sweep that only some of the swept models or data sets have; jobs of the others run without them."""

from collections.abc import Mapping, Sequence

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from adlight.runs.config import CONF
from adlight.runs.overrides import explain_config, search_path
from adlight.types import UserError, unknown_name

LIST = "partial_settings"  # setting that lists them for the jobs


def mark_partial_settings(words: Sequence[str]) -> list[str]:
    """Make Hydra accept settings that only some of the swept choices have, and list them in the setting `LIST`.

    Raises:
        UserError: none of the choices has the setting, or a choice does not exist.
    """
    overrides = [word for word in words if not word.startswith(("-", "hydra."))]
    parsed = dict(zip(overrides, OverridesParser.create().parse_overrides(overrides), strict=True))
    keys = {word: override.key_or_group for word, override in parsed.items()}
    sweeps = [override for override in parsed.values() if _sweeps(override)]
    swept = {override.key_or_group: list(map(str, override.sweep_string_iterator())) for override in sweeps}
    nested = {word: key for word, key in keys.items() if "." in key and word[0] not in "+~"}
    settings = {word: key for word, key in nested.items() if key.split(".")[0] in swept}
    if not settings:
        return list(words)
    groups = [word for word, key in keys.items() if (CONF / key).is_dir() and not _sweeps(parsed[word])]
    groups += [word for word in words if word.startswith("hydra.searchpath=")]
    configs: dict[str, dict[str, DictConfig]] = {}
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            for name in {key.split(".")[0] for key in settings.values()}:
                configs[name] = {choice: compose("train", [*groups, f"{name}={choice}"]) for choice in swept[name]}
    except HydraException as error:  # a choice does not exist
        raise UserError(explain_config(error)) from error
    partial = [key for key in settings.values() if not _all_have(configs[key.split(".")[0]], key)]
    # marked as additions, since Hydra composes the config of the default model, which may lack them too
    marked = [f"++{word}" if word in settings else word for word in words]
    return [*marked, f"{LIST}=[{','.join(dict.fromkeys(partial))}]"] if partial else marked


def lacking_settings(overrides: Sequence[str]) -> dict[str, str]:
    """Find the listed settings that a job's model or data set lacks. -> the choice that lacks it, by setting."""
    words = [word.partition("=")[2] for word in overrides if word.startswith(f"{LIST}=")]
    listed = {key: key.split(".")[0] for key in words[-1].strip("[]").split(",")} if words else {}
    if not listed:
        return {}
    choices = HydraConfig.get().runtime.choices
    config = compose("train", [*search_path(), *(f"{name}={choices[name]}" for name in sorted(set(listed.values())))])
    return {key: f"{group}={choices[group]}" for key, group in listed.items() if not _has(config, key)}


def remove_lacking_settings(config: DictConfig) -> None:
    """Remove the listed settings that a job's model or data set lacks from its config, and print them."""
    for key, choice in lacking_settings(HydraConfig.get().overrides.task).items():
        parent, _, name = key.rpartition(".")
        if isinstance(OmegaConf.select(config, parent), DictConfig):
            print(f"{key}={OmegaConf.select(config, key)} is left out: {choice} has no such setting", flush=True)
        with open_dict(config):
            while isinstance(node := OmegaConf.select(config, parent) if parent else None, DictConfig):
                node.pop(name, None)
                if node:
                    break
                parent, _, name = parent.rpartition(".")  # the node was created for the setting


def _sweeps(override: Override) -> bool:
    """Return whether an override sweeps over choices of a group."""
    return override.is_sweep_override() and (CONF / override.key_or_group).is_dir() and override.is_choice_sweep()


def _all_have(configs: Mapping[str, DictConfig], key: str) -> bool:
    having = [choice for choice, config in configs.items() if _has(config, key)]
    if not having:
        parent, _, name = key.rpartition(".")
        known = {str(name) for config in configs.values() for name in OmegaConf.select(config, parent) or ()}
        message = unknown_name(f"setting in {parent}", name, sorted(name for name in known if not name.startswith("_")))
        raise UserError(f"{message}; none of {', '.join(configs)} has it")
    return len(having) == len(configs)


def _has(config: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent)
    return isinstance(node, DictConfig) and name in list(node)
