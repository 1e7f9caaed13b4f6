"""Prepare the command line of `adlight.train` for Hydra: resumed runs, sweeps, and steps of Slurm."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from adlight.cli.words import (
    MULTIRUN,
    continue_in,
    is_multirun,
    mark_overrides,
    shows_info,
    to_override,
    value_of,
)
from adlight.runs.config import CONF
from adlight.runs.files import read_number
from adlight.runs.find import SweepFolder, find_unfinished
from adlight.runs.folder import RunFolder
from adlight.runs.overrides import SEARCH_PATH, choose_none, compose_config
from adlight.types import UserError, unknown_name


def task_overrides(*excluded: str) -> list[str]:
    """Return the overrides of the present command without leading `+`, except those of the `excluded` keys."""
    words = [word.lstrip("+") for word in HydraConfig.get().overrides.task]
    return [word for word in words if word.partition("=")[0] not in excluded]


def train_arguments(argv: list[str]) -> list[str]:
    """Add the words that a resumed run, a sweep or a step of srun needs; raise a UserError for contradictory ones."""
    argv = [choose_none(word) for word in argv]
    if shows_info(argv):
        return without_sweep(argv)
    resume, folder = value_of(argv, "resume"), value_of(argv, "hydra.run.dir")
    if value_of(argv, "resume_sweep") == "true" and not is_multirun(argv):
        raise UserError("resume_sweep=true continues a sweep: repeat its command, with -m or sweep=<name>")
    if resume:
        if is_multirun(argv):
            raise UserError("resume= continues a single run; leave out -m, or continue a sweep with resume_sweep=true")
        return _resume(argv, resume, folder)
    if is_multirun(argv):
        return multirun_argv(mark_partial_settings(argv))
    return argv if folder else _share_folder_of_step(argv)


def without_sweep(argv: list[str]) -> list[str]:
    """Remove `-m` and the settings that it would vary, which have no single value for `--cfg` to show."""
    parse = OverridesParser.create().parse_overrides
    return [
        word
        for word, is_override in mark_overrides(argv)
        if word not in MULTIRUN and not (is_override and parse([word])[0].is_sweep_override())
    ]


def _resume(argv: list[str], which: str, folder: str | None) -> list[str]:
    words = [word for word in argv if not word.startswith("resume=")]
    if which != "auto":
        run = RunFolder(which)
        if folder and Path(folder).resolve() != run.path.resolve():
            raise UserError(f"resume={which} continues in that folder: leave out hydra.run.dir={folder}")
        if not run.can_resume:
            run.read_config()  # raises if this is not a run
            run.checkpoint("last")  # raises, and lists the existing checkpoints
        return continue_in([_mark_addition(word) for word in words], run.path)
    overrides = [word for word, is_override in mark_overrides(words) if is_override]
    places = [Path(folder)] if folder else sorted(Path("runs").glob("*"))
    run_found = find_unfinished(list(map(RunFolder, places)), compose_config("train", overrides))
    if run_found is None:
        print("resume=auto: no unfinished run with this config; a new one starts", flush=True)
        return words
    return continue_in([word for word in words if word not in overrides], run_found.path)  # it keeps its own config


def _mark_addition(word: str) -> str:
    # Hydra composes the config of the default model, which may lack a key that the run's config has
    key = word.partition("=")[0]
    return f"++{word}" if "." in key and not word.startswith(("+", "~", "-", "hydra.")) else word


def _share_folder_of_step(argv: list[str]) -> list[str]:
    # all processes of an srun step share one run folder, and a requeued step resumes it
    if read_number("SLURM_STEP_NUM_TASKS") < 2:
        return argv
    if "SLURM_NTASKS_PER_NODE" not in os.environ:  # Lightning needs it
        raise UserError("srun with several processes needs --ntasks-per-node, and trainer=slurm")
    run = RunFolder(Path("runs") / f"slurm-{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}")
    if run.is_run and run.can_resume:
        return continue_in(argv, run.path)
    return [*argv, to_override("hydra.run.dir", run.path)]


def multirun_argv(argv: Sequence[str]) -> list[str]:
    """Add the settings that a multirun needs.

    Hydra must not write the config of a job: it would overwrite an earlier job's before the two are compared.
    """
    varied, words = SweepFolder(value_of(argv, "hydra.sweep.dir") or "").note()["varied"], ["--multirun"]
    overrides = [word for word, is_override in mark_overrides(argv) if is_override and not word.startswith("hydra.")]
    parsed = dict(zip(overrides, OverridesParser.create().parse_overrides(overrides), strict=True))
    swept = {override.key_or_group for override in parsed.values() if override.is_sweep_override()}
    for word in argv:
        if override := parsed.get(word):
            if override.is_choice_sweep() or override.is_range_sweep():
                _check_has_values(override)
            elif varied.get(override.key_or_group) and override.key_or_group not in swept:  # a further job of the sweep
                word = f"{override.get_key_element()}=choice({override.get_value_element_as_str()})"
        words += [word] if word not in MULTIRUN else []
    return [*words, "hydra.output_subdir=null"]


def _check_has_values(override: Override) -> None:
    try:
        has_values = any(map(str, override.sweep_string_iterator()))
    except ValueError as error:  # a range with step 0
        raise UserError(f"{override.input_line}: {error}") from error
    if not has_values:
        raise UserError(f"{override.input_line} has no values, so the sweep would have no jobs")


def mark_partial_settings(words: Sequence[str]) -> list[str]:
    """Make Hydra accept settings that only some of the swept models or data sets have; jobs of the others run without.

    The setting `partial_settings` names the choices that lack a setting, for the jobs.

    Raises:
        UserError: none of the choices has the setting.
    """
    overrides = [word for word, is_override in mark_overrides(words) if is_override and not word.startswith("hydra.")]
    parsed = dict(zip(overrides, OverridesParser.create().parse_overrides(overrides), strict=True))
    groups = {word: override for word, override in parsed.items() if (CONF / override.key_or_group).is_dir()}
    fixed = [word for word, override in groups.items() if not override.is_sweep_override()]
    fixed += [word for word in words if word.startswith(SEARCH_PATH)]
    marked, partial = list(words), dict[str, list[str]]()
    for override in groups.values():
        group = override.key_or_group
        settings = {word: o.key_or_group for word, o in parsed.items() if word.startswith(f"{group}.")}
        if not settings or not override.is_choice_sweep():
            continue
        choices = list(map(str, override.sweep_string_iterator()))
        configs = {choice: compose_config("train", [*fixed, f"{group}={choice}"]) for choice in choices}
        # marked as additions, since Hydra composes the config of the default model, which may lack them
        marked = [f"++{word}" if word in settings else word for word in marked]
        partial |= {key: lacking for key in settings.values() if (lacking := _find_lacking(key, configs))}
    return [*marked, f"++{to_override('partial_settings', partial)}"] if partial else marked


def _find_lacking(key: str, configs: Mapping[str, DictConfig]) -> list[str]:
    parent, _, name = key.rpartition(".")
    nodes = {choice: OmegaConf.select(config, parent) for choice, config in configs.items()}
    names = {choice: list(node) if isinstance(node, DictConfig) else [] for choice, node in nodes.items()}
    lacking = [choice for choice in names if name not in names[choice]]
    if len(lacking) == len(configs):
        known = sorted({name for found in names.values() for name in found if not name.startswith("_")})
        raise UserError(f"{unknown_name(f'setting in {parent}', name, known)}; none of {', '.join(configs)} has it")
    return lacking
