"""Checks of saved configs: a run folder from a stranger must not run its own code or choose where files are written.

Only adlight's own classes, torch's optimizers and schedules, and Lightning's trainer with its loggers, strategies,
callbacks, profilers and plugins are instantiated from a saved config. Users name packages of their own in the
environment variable ADLIGHT_TRUST=my_package,other. The command line is the user's own and is not checked.
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
OWN = re.compile(  # harmless whatever their arguments; other functions of ours write files
    r"adlight\.(baselines|callbacks|data|distillation|features|gan|learning|loggers|mae|memory|metrics|reconstruction"
    r"|rotation)\.\w+\.[A-Z]\w*"
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
RESOLVERS = {"hydra", "oc.env", "oc.select", "now"}  # they cannot turn text into a node
DECODED = re.compile(r"\$\{oc\.decode:\$\{oc\.env:\w+,\d*\}\}")  # a number set by Slurm
INTERPOLATION = re.compile(r"\$\{\s*([\w.\[\]]+)\s*([:}])")
WRITERS = ("adlight.callbacks.", "adlight.loggers.", "adlight.runs.", "pytorch_lightning.")
WRITING = ("callbacks.", "checkpoint.", "logger.", "trainer.")  # the only nodes in which writers are allowed
WRITTEN = {  # arguments of writers that name files or folders
    *("folder", "path", "pretraining", "last", "best", "save_dir", "dirpath", "output_dir", "log_dir", "_args_"),
    *("default_root_dir", "root_dir", "dir", "filename"),
}
ALIAS = re.compile(r"(^|[\s\[{,])\*[\w-]+\s*([\],}]|$)", re.MULTILINE)  # YAML's; Hydra writes none
GROUP, CHOICE = re.compile(r"[\w/@.]+"), re.compile(r"\w[\w/-]*")
OUTPUT_DIR = "${hydra:runtime.output_dir}"  # the folder of the present command


def check_config(config: DictConfig, file: Path) -> None:
    """Raise a UserError for an untrusted target or interpolation; set `run_dir` to the present command's folder."""
    check_interpolations(config, file)
    check_targets(find_targets(config), file)


def check_interpolations(config: DictConfig, file: Path) -> None:
    """Raise a UserError for an interpolation that could hide a target; set `run_dir` to this command's folder."""
    if "run_dir" in config:
        config.run_dir = OUTPUT_DIR
    for key, value in _walk(OmegaConf.to_container(config), ""):
        if not isinstance(value, str) or "$" not in value or DECODED.fullmatch(value):
            continue
        names = INTERPOLATION.findall(value)
        is_plain = len(names) == value.count("$") == value.count("{") and "\\" not in value
        unknown = [name for name, end in names if end == ":" and name not in RESOLVERS]
        if not is_plain or unknown or key.rpartition(".")[2] == "_target_":
            raise UserError(f"{key}={value} in {file} may not be an interpolation of this kind: write its value")


def find_targets(config: DictConfig | dict[str, Any]) -> dict[str, Any]:
    """Return all `_target_` values of a config by dotted key, unresolved."""
    values = _walk(OmegaConf.to_container(config) if isinstance(config, DictConfig) else config, "")
    return {key: value for key, value in values if key.rpartition(".")[2] == "_target_"}


def check_targets(targets: Mapping[str, Any], file: Path) -> None:
    """Raise a UserError for a target, by dotted key, that is not trusted or not allowed in its node."""
    for key, value in targets.items():
        if not is_trusted(value) or (value.startswith(WRITERS) and not key.startswith(WRITING)):
            raise UserError(
                f"{key}={value} in {file} is not run, as it is neither adlight's nor from a package that you trust: "
                f"name your own in the environment variable {VARIABLE}=<package>,<package>, or do not use this run"
            )


def is_trusted(target: Any) -> bool:
    """Return whether a saved `_target_` may be called; a name that its module imports from elsewhere may not."""
    packages = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    library = next((name for name in LIBRARIES if str(target).startswith(f"{name}.")), None)
    is_own = isinstance(target, str) and OWN.fullmatch(target)
    is_users = isinstance(target, str) and _lies_in(target, packages)
    if not (is_own or library or is_users):
        return False
    try:
        found = resolve_name(target)
    except Exception:  # importing a module may raise anything
        return False
    if library and not is_users:
        return isclass(found) and issubclass(found, tuple(map(resolve_name, LIBRARIES[library])))
    homes = ["adlight"] if is_own else packages
    return (isclass(found) or isfunction(found)) and _lies_in(found.__module__, homes)


def check_places(config: DictConfig, file: Path, changed: Sequence[str] = ()) -> None:
    """Check that loggers, callbacks and the trainer write only to the run folder.

    Args:
        config: the saved config, checked by `check_config`, with the overrides applied.
        file: where it was saved, for messages.
        changed: overrides from the command line, which may name any place.

    Raises:
        UserError: a path lies outside the run folder.
    """
    marked = config.copy()
    OmegaConf.set_struct(marked, False)
    marked.run_dir = root = "/the run folder"
    overridden = {word.lstrip("+~").partition("=")[0] for word in changed}
    for key, raw in _walk(OmegaConf.to_container(config), ""):
        if not (isinstance(raw, str) and key.startswith(WRITING)) or raw.startswith("${hydra:"):
            continue
        if any(key == name or key.startswith(f"{name}.") for name in overridden):
            continue
        try:
            resolved = OmegaConf.select(marked, key)
        except OmegaConfBaseException:  # only the present command can resolve it, and reports the error
            continue
        value = Path(raw if resolved is None else str(resolved))
        is_place = bool(WRITTEN.intersection(key.split("."))) or str(value).startswith(("/", "~"))
        if ".." in value.parts or (is_place and not value.is_relative_to(root)):
            raise UserError(f"{key}={raw} in {file} lies outside the run folder: set {key}=<path> to write there")


def check_choices(choices: Any, file: Path) -> None:
    """Raise a UserError for a choice of a config group that could name a file outside our conf/."""
    for group, name in dict(choices or {}).items():
        if not GROUP.fullmatch(str(group)) or not (name is None or CHOICE.fullmatch(str(name))):
            raise UserError(f"{file} is damaged: {group}={name} is not a choice of a config group")


def refuse_aliases(text: str) -> None:
    """Raise a ValueError for YAML with aliases: a few lines of them can expand to a config that fills the memory."""
    if ALIAS.search(text):
        raise ValueError("aliases")


def _lies_in(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _walk(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield all values of nested dicts and lists by dotted key, and every `_target_` whatever its type."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    for name, value in node.items() if isinstance(node, dict) else ():
        key = f"{path}.{name}" if path else str(name)
        if name == "_target_" or not isinstance(value, dict | list):
            yield key, value
        else:
            yield from _walk(value, key)
