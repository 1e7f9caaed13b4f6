"""Where the configs lie, and how overrides are applied to the config of a run. Hydra is imported where it is needed."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from adlight.runs.checks import check_node
from adlight.runs.targets import check_made
from adlight.runs.trust import refuse_aliases
from adlight.types import UserError

CONF = next(
    folder
    for folder in (Path(__file__).parents[1] / "conf", Path(__file__).parents[2] / "conf")
    if (folder / "train.yaml").exists()
)

NOT_COMPARED = {"resume", "resume_sweep", "run_dir", "requested_frame", "partial_settings", "hydra"}
# they differ between the first time and the next
FRAME_KEYS = ("image_size", "resize", "keep_shape")
INPUT_KEYS = (*FRAME_KEYS, "channels", "roi", "tile", "overlap")  # of a data set: what a network gets to see of it
CHANGE_SCORES = (
    "model",
    "dataset",
    "calibration.image",
    "calibration.pixel",
    "calibration.folds",
    "calibration.asked",
    "trainer=",
    "trainer.precision",
)
SPLIT_KEYS = (  # settings of a data set that choose its training images
    *("source", "category", "seed", "val_fraction", "train_limit"),
    *("normal", "normal_dir", "test_normal_dir", "normal_test_fraction"),
)


def check_same_split(config: DictConfig, other: DictConfig, name: str) -> None:
    """Refuse another run's networks if its training images were chosen otherwise; where they lie may differ.

    Raises:
        UserError: the other run may know images that are held out here for thresholds or test.
    """
    for key in SPLIT_KEYS:
        mine, theirs = config.dataset.get(key), other.dataset.get(key)
        if mine != theirs:
            raise UserError(
                f"dataset.{key} is {mine}, but {theirs} in {name}, which may have been trained on images that are held "
                "out here"
            )


def read_yaml(path: Path) -> DictConfig:
    """Read a config file.

    Raises:
        UserError: it holds something else.
    """
    try:
        refuse_aliases(path.read_text(encoding="utf-8"))
        content = OmegaConf.load(path)
    except (YAMLError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: it cannot be read ({type(error).__name__})") from error
    if not isinstance(content, DictConfig):
        raise UserError(f"{path} is damaged: it holds no settings")
    return content


def search_path() -> list[str]:
    """Give the override by which the present command finds configs of the user's own, if there are some."""
    from hydra.core.hydra_config import HydraConfig

    words = HydraConfig.get().overrides.hydra if HydraConfig.initialized() else []
    return [word for word in words if word.startswith("hydra.searchpath=")]


def choose_none(override: str) -> str:
    """Turn `callbacks=null` into the group's empty choice, as Hydra takes no null for a group.

    Raises:
        UserError: the group has none.
    """
    key, _, value = override.partition("=")
    if value != "null" or not (CONF / key).is_dir() or not key:
        return override
    if not (CONF / key / "none.yaml").exists():
        raise UserError(f"{override}: there is no empty choice of {key}; name one, or leave {override} out")
    return f"{key}=none"


def apply_overrides(config: DictConfig, choices: Mapping[str, Any], overrides: Sequence[str]) -> DictConfig:
    """Apply overrides to a run's config; Hydra must have been initialized with our conf/.

    A value goes to its key, which must exist. A group (`trainer=gpu`, `dataset=mvtec`) is composed anew with the
    run's other choices (the groups it was composed of, by name), and values that the run had set itself stay; of a data
    set only `INPUT_KEYS` do, as the run's network is made for them.

    Raises:
        omegaconf.errors.OmegaConfBaseException: there is no such key.
    """
    from hydra import compose
    from hydra.core.override_parser.overrides_parser import OverridesParser

    config = config.copy()
    OmegaConf.set_struct(config, True)
    groups = {str(name) for name in config if (CONF / str(name)).is_dir()}
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for override in sorted(parsed, key=lambda one: one.key_or_group not in groups):  # groups first, as Hydra does
        key, value = override.key_or_group, override.value()
        if key in groups:
            chosen = {name: which for name, which in choices.items() if name in groups}
            before, node = (
                compose("train", [*search_path(), *(f"{name}={which}" for name, which in found.items())])[key]
                for found in (chosen, {**chosen, key: value})
            )
            if key == "dataset":
                node.update({name: config.dataset.get(name) for name in INPUT_KEYS})
            else:
                new, old = flatten(node), flatten(before)
                for path, mine in flatten(config[key]).items():
                    if path in new and mine != old.get(path):  # the run had set it itself
                        OmegaConf.update(node, path, mine)
            OmegaConf.update(config, key, node, merge=False, force_add=True)
        else:
            OmegaConf.update(config, key, value)
    return config


def flatten(node: Any) -> dict[str, Any]:
    """Give the values of nested dicts by dotted key, interpolations as they are written."""
    if isinstance(node, DictConfig):
        node = OmegaConf.to_container(node)
    if not isinstance(node, dict):
        return {"": node}
    return {
        f"{name}.{below}" if below else str(name): value
        for name, inner in node.items()
        for below, value in flatten(inner).items()
    }


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give what two configs of a job or sweep are compared by, interpolations as they are written."""
    plain: Any = OmegaConf.to_container(config) if isinstance(config, DictConfig) else dict(config)
    if plain.get("requested_frame"):
        plain["dataset"] = {**plain["dataset"], **plain["requested_frame"]}
    return {key: value for key, value in plain.items() if key not in NOT_COMPARED}


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name the first setting in which two configs differ; nothing if there is none."""
    old, new = flatten(comparable(before)), flatten(comparable(now))
    for path in sorted(old.keys() | new.keys()):
        if old.get(path) != new.get(path):
            return f"{path} was {old.get(path)!r} and is {new.get(path)!r} now"
    return ""


def require_nodes(config: DictConfig, *names: str) -> None:
    """Refuse a config without nodes that nothing works without.

    Raises:
        UserError: one was deleted or set to null.
    """
    for name in names:
        if not isinstance(config.get(name), DictConfig):
            raise UserError(f"{name} is empty, and nothing works without it: remove {name}=null or ~{name}")


def drop_objective(config: DictConfig) -> None:
    """Leave a model's objective out where nothing is trained: no LPIPS weights are needed.

    Only of adlight's own models: what others call so may be anything.
    """
    if "objective" in config.model and str(config.model.get("_target_")).startswith("adlight."):
        config.model.objective = None


def changes_scores(overrides: Iterable[str]) -> bool:
    """Whether overrides of a run may change what a normal score is, so that its thresholds say nothing any more."""
    return any(word.lstrip("+").startswith(CHANGE_SCORES) for word in overrides)


def instantiate_node(node: DictConfig, **more: Any) -> Any:
    """Make what a node describes, with plain lists and dicts as arguments.

    Raises:
        UserError: a setting that its target, or that of a node in it, does not take, or another kind of object.
    """
    from hydra.utils import instantiate

    check_node(node, more)
    return check_made(node, instantiate(node, **more, _convert_="all"))
