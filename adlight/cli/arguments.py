"""The words of a command line before Hydra reads them: the one place that looks into them and rewrites them."""

import os
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString

from adlight.cli.flags import FLAGS_THAT_SHOW, MULTIRUN, mark_overrides, shows_help
from adlight.cli.mixed import mark_partial_settings
from adlight.runs.config import CONF
from adlight.runs.files import read_number
from adlight.runs.find import find_unfinished
from adlight.runs.folder import RunFolder
from adlight.runs.overrides import choose_none
from adlight.runs.sweep_folder import SweepFolder
from adlight.types import UserError

PLACES = ("run", "runs", "images", "labels", "resume", "out", "ckpt", "run_dir", "hydra.run.dir", "hydra.sweep.dir")
OWN_OF_EVALUATE = ("run", "ckpt")  # everything else changes the run's config


def refuse_empty_places(argv: Sequence[str]) -> None:
    """Refuse a place without a name, which would be the working directory.

    Raises:
        UserError: a folder or file is given as nothing, or a value has no name.
    """
    for word in argv:
        key, equals, value = word.partition("=")
        if not key:
            raise UserError(f"{word!r} is no setting: write <name>=<value>, such as model=retrieval")
        if value.startswith("../") and key and (CONF / key).is_dir():
            raise UserError(f"{word}: {key} is chosen by a name, such as {min((CONF / key).glob('[a-z]*.yaml')).stem}")
        if equals and key.lstrip("+") in PLACES and not value.strip("'\" "):
            raise UserError(f"{word} is empty: give {key}=<a path>, or leave it out")


def value_of(argv: Sequence[str], key: str) -> str | None:
    """Find the value of the last `key=value` among the words, without its quotes."""
    return next((word.partition("=")[2].strip("'\"") for word in argv[::-1] if word.startswith(f"{key}=")), None)


def quote(key: str, value: Path | str) -> str:
    """Make an override that Hydra's grammar takes whatever characters are in the value."""
    return f"{key}={QuotedString(str(value), Quote.single).with_quotes()}"


def quote_values(argv: Sequence[str], *keys: str, lists: bool = False) -> list[str]:
    """Quote the values of some keys unless they are quoted, null or (with `lists`) a list in brackets."""
    words = []
    for word in argv:
        key, _, value = word.partition("=")
        literal = value == "null" or value[:1] in ("'", '"') or (lists and value[:1] == "[")
        words.append(quote(key, value) if key in keys and not literal else word)
    return words


def task_overrides(*but: str) -> list[str]:
    """Give the overrides that Hydra has read, without those of some keys and without the marks of additions."""
    words = [word.lstrip("+") for word in HydraConfig.get().overrides.task]
    return [word for word in words if word.partition("=")[0] not in but]


def evaluate_arguments(argv: list[str]) -> list[str]:
    """Mark overrides of the run's config as additions for Hydra, whose own config here knows only `run` and `ckpt`.

    Raises:
        UserError: `run` is missing or not a run folder.
    """
    if shows_help(argv):
        return argv
    if (run := value_of(argv, "run")) is None:
        raise UserError("say which run: python -m adlight.evaluate run=<run folder>")
    RunFolder(run).config()
    RunFolder(run).read_training()
    words = []
    for word, is_override in mark_overrides(argv):
        if is_override and word.startswith("~"):  # there is nothing yet that Hydra could delete
            word = f"{word[1:].partition('=')[0]}=null"
        word = choose_none(word)
        key = word.partition("=")[0]
        if key.lstrip("+") in ("resume", "resume_sweep"):
            raise UserError(f"{word} is for adlight.train: an evaluation is done at once, or again")
        if is_override and key not in OWN_OF_EVALUATE and not word.startswith(("+", "hydra.")):
            word = f"+{word}" if (CONF / key).is_dir() else f"++{word}"
        words.append(word)
    return words


def train_arguments(argv: list[str]) -> list[str]:
    """Add what a resumed run, a sweep or a step of srun needs to the words of `adlight.train`.

    Raises:
        UserError: no such run.
    """
    argv = [choose_none(word) for word in argv]
    if any(word.partition("=")[0] in FLAGS_THAT_SHOW for word in argv):
        return _without_sweep(argv)  # Hydra does one thing at a time
    resume, folder = value_of(argv, "resume"), value_of(argv, "hydra.run.dir")
    multirun = not set(MULTIRUN).isdisjoint(argv) or value_of(argv, "sweep") not in (None, "null")
    if value_of(argv, "resume_sweep") == "true" and not multirun:
        raise UserError("resume_sweep=true continues a sweep: repeat its command, with -m or sweep=<name>")
    if resume not in (None, "null"):
        if multirun:
            raise UserError("resume= continues a single run; leave out -m, or continue a sweep with resume_sweep=true")
        return _resume(argv, str(resume), folder)
    if multirun:
        return multirun_argv(mark_partial_settings(argv))
    return argv if folder else _share_folder_of_step(argv)


def _resume(argv: list[str], which: str, folder: str | None) -> list[str]:
    words = [word for word in argv if not word.startswith("resume=")]
    if which != "auto":
        run = RunFolder(which)
        if folder and Path(folder).resolve() != run.path.resolve():
            raise UserError(f"resume={which} goes on in that folder: leave out hydra.run.dir={folder}")
        if not run.can_resume:
            run.read_config()  # says what is missing of a run
            run.checkpoint("last")  # says what there is
        return _continue([_add_setting(word) for word in words], run)
    overrides = [word for word, is_override in mark_overrides(words) if is_override]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [word for word in overrides if not word.startswith("hydra.") or "searchpath" in word])
    places = [Path(folder)] if folder else sorted(Path("runs").glob("*"))
    found = find_unfinished(list(map(RunFolder, places)), config)
    if found is None:
        print("resume=auto: no unfinished run with this config; a new one starts", flush=True)
        return words
    return _continue([word for word in words if word not in overrides], found)  # the config is the run's own


def _add_setting(word: str) -> str:
    # the run's own config has the key; the default model, of which Hydra knows only, may lack it
    key = word.partition("=")[0]
    return f"++{word}" if "." in key and not word.startswith(("+", "~", "-", "hydra.")) else word


def _continue(words: list[str], run: RunFolder) -> list[str]:
    words = [word for word in words if not word.startswith("hydra.run.dir=")]
    return [*words, quote("resume", run.path), quote("hydra.run.dir", run.path), "hydra.output_subdir=null"]


def _share_folder_of_step(argv: list[str]) -> list[str]:
    # all processes of an srun step share one run folder: a new one, or the one it has left when it is queued again
    if read_number("SLURM_STEP_NUM_TASKS") < 2:
        return argv
    if "SLURM_NTASKS_PER_NODE" not in os.environ:  # Lightning needs it
        raise UserError("srun with several processes needs --ntasks-per-node, and trainer=slurm")
    run = RunFolder(Path("runs") / f"slurm-{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}")
    return _continue(argv, run) if run.is_run and run.can_resume else [*argv, quote("hydra.run.dir", run.path)]


def multirun_argv(argv: list[str]) -> list[str]:
    """Add what a multirun needs to the words of its command line.

    Hydra must not write a job's config: it would overwrite that of an earlier job before the two are compared. Names
    of folders leave out what is the same for all jobs.
    """
    sweep = SweepFolder(value_of(argv, "hydra.sweep.dir") or "")
    varied = sweep.note()["varied"] if sweep.is_sweep else []
    words, last = ["--multirun"], {}
    for word, is_override in mark_overrides(argv):
        if is_override and not word.startswith("hydra."):
            (one,) = OverridesParser.create().parse_overrides([word])
            last[one.key_or_group] = one, len(words)  # the last word on a setting counts
            if one.is_choice_sweep() or one.is_range_sweep():
                _require_values(one)
        words += [word] if word not in MULTIRUN else []
    fixed = []
    for key, (one, place) in last.items():
        if not one.is_sweep_override() and key in varied:  # one more job of a resumed sweep, not another sweep
            words[place] = f"{one.get_key_element()}=choice({one.get_value_element_as_str()})"
        elif not one.is_sweep_override():
            fixed.append(f"'{key}'")
    return [*words, "hydra.output_subdir=null", f"hydra.job.config.override_dirname.exclude_keys=[{','.join(fixed)}]"]


def _require_values(one: Override) -> None:
    try:
        found = any(map(str, one.sweep_string_iterator()))
    except ValueError as error:  # a range whose step is 0
        raise UserError(f"{one.input_line}: {error}") from error
    if not found:
        raise UserError(f"{one.input_line} gives no value, and so the sweep no job")


def _without_sweep(argv: list[str]) -> list[str]:
    parse = OverridesParser.create().parse_overrides  # what -m would sweep has no one value to be shown
    return [
        word
        for word, is_override in mark_overrides(argv)
        if word not in MULTIRUN and not (is_override and parse([word])[0].is_sweep_override())
    ]
