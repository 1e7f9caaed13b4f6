"""What a saved config may say: a run folder from a stranger executes nothing, and does not choose where to write.

Only a list of constructors is instantiated from one: adlight's own, torch's optimizers and schedules, and Lightning's
trainer with its loggers, strategies, callbacks, profilers and plugins. Packages of one's own are named in the
environment variable ADLIGHT_TRUST=my_package,other. The command line's own words are the user's, and are not checked.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from inspect import isclass, isfunction
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adlight.types import UserError

VARIABLE = "ADLIGHT_TRUST"
OWN = re.compile(  # classes with no more than their arguments to say what they do; other functions of ours write files
    r"adlight\.(baselines|callbacks|data|distillation|features|gan|learning|loggers|mae|memory|metrics|reconstruction)\.\w+\.[A-Z]\w*"
    r"|adlight\.detection\.maps\.ReconstructionError"
    r"|adlight\.callbacks\.progress\.progress_bar|adlight\.runs\.checkpoints\.BestAndLast"
)
LIBRARIES = {
    "torch.optim": ("torch.optim.Optimizer", "torch.optim.lr_scheduler.LRScheduler"),
    "pytorch_lightning": (
        *("pytorch_lightning.Trainer", "pytorch_lightning.Callback", "pytorch_lightning.loggers.Logger"),
        *("pytorch_lightning.strategies.Strategy", "pytorch_lightning.profilers.Profiler"),
        *("pytorch_lightning.plugins.ClusterEnvironment", "pytorch_lightning.plugins.Precision"),
    ),
}
RESOLVERS = {"hydra", "oc.env", "oc.select", "now"}  # none makes a node of a text
DECODED = re.compile(r"\$\{oc\.decode:\$\{oc\.env:\w+,\d*\}\}")  # a number of Slurm's
INTERPOLATION = re.compile(r"\$\{\s*([\w.\[\]]+)\s*([:}])")
WRITERS = ("adlight.callbacks.", "adlight.loggers.", "adlight.runs.", "pytorch_lightning.")
WRITING = ("callbacks.", "checkpoint.", "logger.", "trainer.")  # the only nodes that have them
WRITTEN = {  # arguments of theirs that name what is written
    *("folder", "path", "pretraining", "last", "best", "save_dir", "dirpath", "output_dir", "log_dir", "_args_"),
    *("default_root_dir", "root_dir", "dir", "filename"),
}
ALIAS = re.compile(r"(^|[\s\[{,])\*[\w-]+\s*([\],}]|$)", re.MULTILINE)  # of YAML, which Hydra does not write
GROUP, CHOICE = re.compile(r"[\w/@.]+"), re.compile(r"\w[\w/-]*")
HERE = "${hydra:runtime.output_dir}"  # where the present command writes, whatever a saved config says


def check_config(config: DictConfig, file: Path) -> None:
    """Refuse a saved config that would run something else than what detectors, data and trainings are made of.

    Its `run_dir` becomes that of the present command.

    Raises:
        UserError: a target that is not on the list or in a node where it has no place, or an interpolation that could
            make one; nothing has been instantiated.
    """
    check_interpolations(config, file)
    check_targets(find_targets(config), file)


def check_interpolations(config: DictConfig, file: Path) -> None:
    """Refuse interpolations that could make a target; `run_dir` becomes that of the present command.

    Raises:
        UserError: there is one.
    """
    if "run_dir" in config:
        config.run_dir = HERE
    for key, value in _walk(OmegaConf.to_container(config), ""):
        if isinstance(value, str):
            _check_interpolations(key, value, file)


def check_targets(targets: Mapping[str, Any], file: Path) -> None:
    """Refuse targets, by dotted key, that are not on the list or have no place where they stand.

    Raises:
        UserError: there is one.
    """
    for key, value in targets.items():
        if not is_trusted(value) or (value.startswith(WRITERS) and not key.startswith(WRITING)):
            raise UserError(
                f"{key}={value} in {file} is not run, as it is neither adlight's nor of a package that you trust: name "
                f"your own in the environment variable {VARIABLE}=<package>,<package>, or leave this run alone"
            )


def find_targets(config: DictConfig | dict[str, Any]) -> dict[str, Any]:
    """Find what a config says to call, as it is written, by dotted key."""
    leaves = _walk(OmegaConf.to_container(config) if isinstance(config, DictConfig) else config, "")
    return {key: value for key, value in leaves if key.rpartition(".")[2] == "_target_"}


def check_places(config: DictConfig, file: Path, changed: Sequence[str] = ()) -> None:
    """Refuse paths of loggers, callbacks and the trainer outside the folder that is written to.

    Args:
        config: as it was saved and checked, with the command line's changes.
        file: where it was saved, for the message.
        changed: overrides of the command line, which may name any place.

    Raises:
        UserError: a path outside it.
    """
    marked = config.copy()
    OmegaConf.set_struct(marked, False)
    marked.run_dir = root = "/the run folder"
    asked = {word.lstrip("+~").partition("=")[0] for word in changed}
    for key, raw in _walk(OmegaConf.to_container(config), ""):
        if not (isinstance(raw, str) and key.startswith(WRITING)) or raw.startswith("${hydra:"):
            continue
        if any(key == one or key.startswith(f"{one}.") for one in asked):
            continue
        try:
            found = OmegaConf.select(marked, key)
        except OmegaConfBaseException:  # something that only the present command knows, and says
            continue
        value = Path(raw if found is None else str(found))
        elsewhere = bool(WRITTEN.intersection(key.split("."))) or str(value).startswith(("/", "~"))
        if ".." in value.parts or (elsewhere and not value.is_relative_to(root)):
            raise UserError(f"{key}={raw} in {file} does not lie in the run: give {key}=<path> if it is to be written")


def check_choices(choices: Any, file: Path) -> None:
    """Refuse names of config groups that could lead to files outside our conf/.

    Raises:
        UserError: one of them does.
    """
    for group, name in dict(choices or {}).items():
        if not GROUP.fullmatch(str(group)) or not (name is None or CHOICE.fullmatch(str(name))):
            raise UserError(f"{file} is damaged: {group}={name} is no choice of a config group")


def is_trusted(target: Any) -> bool:
    """Tell whether a saved `_target_` may be called; a name that leads to what is defined elsewhere may not."""
    packages = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    library = next((name for name in LIBRARIES if str(target).startswith(f"{name}.")), None)
    own = isinstance(target, str) and OWN.fullmatch(target)
    trusted = isinstance(target, str) and _lies_in(target, packages)
    if not (own or library or trusted):
        return False
    try:
        found = resolve_name(target)
    except Exception:  # no such name, or a module that cannot be imported
        return False
    if library and not trusted:
        return isclass(found) and issubclass(found, tuple(map(resolve_name, LIBRARIES[library])))
    homes = ["adlight"] if own else packages
    return (isclass(found) or isfunction(found)) and _lies_in(found.__module__, homes)


def _lies_in(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _walk(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Give all values of nested dicts and lists by dotted key, `_target_`s whatever they are."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    for name, value in node.items() if isinstance(node, dict) else ():
        key = f"{path}.{name}" if path else str(name)
        if name == "_target_" or not isinstance(value, dict | list):
            yield key, value
        else:
            yield from _walk(value, key)


def _check_interpolations(key: str, value: str, file: Path) -> None:
    """Refuse what could become a node, or another interpolation, when it is resolved: `$` and braces by themselves."""
    if "$" not in value or DECODED.fullmatch(value):
        return
    found = INTERPOLATION.findall(value)
    plain = len(found) == value.count("$") == value.count("{") and "\\" not in value
    unknown = [name for name, end in found if end == ":" and name not in RESOLVERS]
    if not plain or unknown or key.rpartition(".")[2] == "_target_":
        raise UserError(f"{key}={value} in {file} may not be an interpolation of this kind: write its value")


def refuse_aliases(text: str) -> None:
    """Refuse YAML in which values stand for others: a few lines of them make a config that no memory holds.

    Raises:
        ValueError: there is one.
    """
    if ALIAS.search(text):
        raise ValueError("aliases")
