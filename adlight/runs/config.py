"""Configs: the folder of adlight's own, reading and comparing saved ones, and building objects from their nodes."""

import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from adlight.runs.targets import build, check_made
from adlight.runs.trust import refuse_aliases
from adlight.types import UserError

CONF = next(  # in a wheel, or in a checkout
    folder
    for folder in (Path(__file__).parents[1] / "conf", Path(__file__).parents[2] / "conf")
    if (folder / "train.yaml").exists()
)
NOT_COMPARED = {"resume", "resume_sweep", "run_dir", "requested_frame", "partial_settings", "hydra"}  # differ on resume
FRAME_KEYS = ("image_size", "resize", "keep_shape")
INPUT_KEYS = (*FRAME_KEYS, "channels", "roi", "tile", "overlap")  # data set settings that shape a network's input
SPLIT_KEYS = (  # data set settings that choose the training images
    *("source", "category", "seed", "val_fraction", "train_limit"),
    *("normal", "normal_dir", "test_normal_dir", "normal_test_fraction"),
)


def register_resolver(name: str, function: Callable[..., Any]) -> None:
    """Add a resolver to OmegaConf, whose version 2.4 deprecates the only way of 2.3."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        OmegaConf.register_new_resolver(name, function, replace=True)


def read_yaml(path: Path) -> DictConfig:
    """Read a config file; raise a UserError if it is damaged."""
    try:
        refuse_aliases(path.read_text(encoding="utf-8"))
        content = OmegaConf.load(path)
    except (YAMLError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: it cannot be read ({type(error).__name__})") from error
    if not isinstance(content, DictConfig):
        raise UserError(f"{path} is damaged: it holds no settings")
    return content


def flatten(node: Any) -> dict[str, Any]:
    """Return the values of nested dicts by dotted key, with unresolved interpolations."""
    if isinstance(node, DictConfig):
        node = OmegaConf.to_container(node)
    if not isinstance(node, dict):
        return {"": node}
    return {
        f"{name}.{key}" if key else str(name): value
        for name, inner in node.items()
        for key, value in flatten(inner).items()
    }


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings by which jobs and sweeps are compared, with unresolved interpolations."""
    plain: Any = OmegaConf.to_container(config) if isinstance(config, DictConfig) else dict(config)
    if plain.get("requested_frame"):
        plain["dataset"] = {**plain["dataset"], **plain["requested_frame"]}
    return {key: value for key, value in plain.items() if key not in NOT_COMPARED}


def difference(before: Mapping[str, Any], now: Mapping[str, Any], ignored: Collection[str] = ()) -> str:
    """Describe the first setting, other than `ignored` ones, in which two configs differ; empty if there is none."""
    old, new = flatten(comparable(before)), flatten(comparable(now))
    for key in sorted((old.keys() | new.keys()) - set(ignored)):
        if old.get(key) != new.get(key):
            return f"{key} was {old.get(key)!r} and is {new.get(key)!r} now"
    return ""


def check_same_split(config: DictConfig, other: DictConfig, name: str) -> None:
    """Raise a UserError if another run may have been trained on images that are held out here."""
    for key in SPLIT_KEYS:
        ours, theirs = config.dataset.get(key), other.dataset.get(key)
        if ours != theirs:
            raise UserError(f"dataset.{key} is {ours}, but {theirs} in {name}, which may have seen held-out images")


def require_nodes(config: DictConfig, *others: str) -> None:
    """Raise a UserError if a node that every command needs, or one of `others`, was deleted or set to null."""
    for name in ("dataset", "model", "trainer", "calibration", *others):
        if not isinstance(config.get(name), DictConfig):
            raise UserError(f"{name} is empty, and nothing works without it: remove {name}=null or ~{name}")


def drop_objective(config: DictConfig) -> None:
    """Remove the objective of an adlight model that is not trained, so that no LPIPS weights are needed."""
    if "objective" in config.model and str(config.model.get("_target_")).startswith("adlight."):
        config.model.objective = None


def instantiate_node(node: DictConfig, **supplied: Any) -> Any:
    """Check a node and build its object; raise a UserError for a bad setting or an object of the wrong kind."""
    from adlight.runs.checks import check_node  # with torch: not for --help

    check_node(node, supplied)
    values = OmegaConf.to_container(node, resolve=True)
    return check_made(node, build(values, str(node._get_full_key(None)), **supplied))
