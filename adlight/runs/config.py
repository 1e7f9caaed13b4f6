"""Where the configs lie, and how overrides are laid over the config of a run."""

from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

CONF = next(
    folder
    for folder in (Path(__file__).parents[1] / "conf", Path(__file__).parents[2] / "conf")
    if (folder / "train.yaml").exists()
)

SEEN = ("image_size", "resize", "channels")  # settings of a data set that say what a network gets to see


def changed(config: DictConfig, choices: DictConfig, overrides: list[str]) -> DictConfig:
    """Lay overrides over a run's config; needs Hydra to be initialised with our conf/.

    A value goes to its key, which must exist. A group (`trainer=gpu`, `dataset=mvtec`) is composed anew beside the
    run's other choices, and values that the run had set itself stay; of a data set only the image size, centre crop
    and channels do, as the run's network is made for them.

    Args:
        config: the run's config.
        choices: the groups it was composed of, by name.
        overrides: as on the command line.

    Raises:
        omegaconf.errors.OmegaConfBaseException: there is no such key.
    """
    config = config.copy()
    OmegaConf.set_struct(config, True)
    groups = {name for name in config if (CONF / str(name)).is_dir()}
    parsed = OverridesParser.create().parse_overrides(overrides)
    for override in sorted(parsed, key=lambda one: one.key_or_group not in groups):  # groups first, as Hydra does
        key, value = override.key_or_group, override.value()
        if key in groups:
            before, node = (
                compose("train", [f"{name!s}={which}" for name, which in chosen.items() if name in groups])[key]
                for chosen in (choices, {**choices, key: value})
            )
            if key == "dataset":
                node.update({name: config.dataset.get(name) for name in SEEN})
            else:  # what the run had set itself, stays
                new, old = leaves(node), leaves(before)
                for path, mine in leaves(config[key]).items():
                    if path in new and mine != old.get(path):
                        OmegaConf.update(node, path.removeprefix("."), mine)
            OmegaConf.update(config, key, node, merge=False, force_add=True)
        else:
            OmegaConf.update(config, key, value)
    return config


def leaves(node: Any, path: str = "") -> dict[str, Any]:
    """The values of nested dicts by their dotted paths, interpolations as they are written."""
    if isinstance(node, DictConfig):
        node = OmegaConf.to_container(node)
    if not isinstance(node, dict):
        return {path: node}
    return {key: value for name, below in node.items() for key, value in leaves(below, f"{path}.{name}").items()}


def plain(config: DictConfig) -> dict[str, Any]:
    """The config as plain dicts, interpolations as they are written."""
    container = OmegaConf.to_container(config)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
