"""What READMEs, experiments and configs print holds for the present code: commands, settings, choices, files."""

import ast
import re
import shlex
import subprocess
import sys
from functools import cache
from importlib import import_module

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from makers import fake_run, write_image
from omegaconf import OmegaConf

from adlight.cli.arguments import mark_partial_settings
from adlight.runs.config import CONF, flatten, instantiate_node
from adlight.runs.labels import LabelFolder
from adlight.runs.overrides import apply_overrides, choose_none
from adlight.types import Record

ROOT = CONF.parent
README = ROOT / "README.md"
DEPLOYMENT = ROOT / "adlight" / "serving" / "README.md"
TEXTS = [README, DEPLOYMENT, ROOT / "conf" / "model" / "README.md", *sorted((ROOT / "experiments").glob("*/README.md"))]
SCRIPTS = sorted((ROOT / "experiments").rglob("*.py"))
PAGES = [*TEXTS, *sorted(CONF.rglob("*.yaml"))]
OTHERS = (
    "predict",
    "export",
    "serve",
    "report",
    "doctor",
    "learn",
    "group",
    "federate",
)  # whose whole command Hydra checks
EXTRAS = ("hydra/launcher=", "sweep=search")  # packages that tests do without
ANY = {"model=<any>": "model=mae_small", "dataset=<any>": "dataset=synthetic"}
PLACES = ("resume=", "hydra.")  # words that say where a run lies
PYTHON = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
GROUPS = ("model", "dataset", "logger")  # their choices differ in what can be set


def code(page):
    """What a page prints as code, commands and spans that go over several lines in one."""
    text = re.sub(r"\\\n\s*", "", page.read_text())
    if page.suffix != ".md":
        return text
    text = PYTHON.sub("", text)
    fence = re.compile(r"^```\w*\n(.*?)^```", re.M | re.S)
    rest = fence.sub("", text)
    spans = [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", rest)]
    return "\n".join([*fence.findall(text), *re.findall(r"^    (\S.*)", rest, re.M), *spans])


def commands(page, program):
    """The words behind `adlight <program>` (or `python -m ...`) on a page, its shell variables filled in."""
    text = code(page)
    variables = dict(re.findall(r'^([A-Z]+)="([^"\n]*)"', text, re.M))
    for line in re.findall(rf"(?:python -m adlight\.|(?:^[# ]*|: +)adlight ){program} ([^\n`]+)", text, re.M):
        for name, words in {**{f"${name}": words for name, words in variables.items()}, **ANY}.items():
            line = line.replace(name, words)
        if not re.search(r"<the same|\.\.\.|--config-dir", line):  # tests/test_own_parts.py runs those with own configs
            line = re.sub(r"<[^>]*>|\$\w+", "x", line)
            yield shlex.split(re.sub(r"\s{2,}\S.*|\s[#\[].*|(?<=\bx): .*", "", line))


def printed(program):
    """All commands of a program as parameters of a test: the first page that prints it, and its words."""
    found = {}
    for page in PAGES:
        for words in commands(page, program):
            if not any(word.startswith(EXTRAS) for word in words):
                found.setdefault(shlex.join(words), page)
    return [pytest.param(page, line, id=f"{page.parent.name}: {line}") for line, page in found.items()]


def expand(words, *but):
    """Give commands without -m and lists that together have every value of each list."""
    words = [choose_none(word) for word in words if not word.startswith(("-", *PLACES, *but))]
    choices = []
    for one in OverridesParser.create().parse_overrides(words):
        values = list(one.sweep_string_iterator()) if one.is_sweep_override() else []
        if all(value.isdigit() for value in values):
            del values[1:-1]  # digits and seeds are all alike
        choices.append([f"{one.get_key_element()}={value}" for value in values] or [one.input_line])
    return [[few[i % len(few)] for few in choices] for i in range(max(map(len, choices), default=1))]


@pytest.fixture
def conf():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


def composed(words):
    """The config of a training, and the groups it is composed of."""
    config = compose("train", [*words, "run_dir=x"], return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    return config, choices


@cache
def runs_of(page):
    """What the first job of each training of a page is composed of; of a page without one the default run."""
    return [composed(expand(words)[0]) for words in commands(page, "train") if "--help" not in words] or [composed([])]


def check_values(config):
    """Build what takes no time; it refuses values that it does not know."""
    instantiate_node(config.calibration)
    if config.model.get("scorer"):  # `rotation` has none
        instantiate_node(config.model.scorer)


@pytest.mark.parametrize("page, line", printed("train"))
def test_a_training_composes(request, page, line):
    words = mark_partial_settings(shlex.split(line))  # a sweep's settings that not all of its models have
    request.getfixturevalue("conf")
    for job in expand(words):
        check_values(composed(job)[0])


@pytest.mark.parametrize("page, line", printed("evaluate"))
def test_an_evaluation_changes_what_a_run_of_its_page_has(conf, page, line):
    for words in expand(shlex.split(line), "run=", "ckpt="):
        words = [re.sub("^~(.*)", r"\1=null", word) for word in words]
        failures = []
        for config, choices in runs_of(page):
            try:
                check_values(apply_overrides(config, choices, words))
                break
            except Exception as error:
                failures.append(error)
        else:
            raise ExceptionGroup(f"no run of {page} takes {shlex.join(words)}", failures)


@pytest.mark.parametrize(
    "program, page, line", [(program, *one.values) for program in OTHERS for one in printed(program)]
)
def test_any_other_command_composes(adlight, tmp_path, program, page, line):
    nodes = {"calibration__image": "fpr:0.05", "trainer__precision": "32-true", "ckpt": "best", "dataset__roi": None}
    run = fake_run(tmp_path / "run", finished=False, **nodes)  # with all that `predict` and `serve` read
    there = {"run": run, "images": "data", "check": "data", "labels": tmp_path}
    LabelFolder(there["run"]).add([Record(str(write_image(tmp_path / "good" / "a.png")), "bottle")])
    words = [f"{key}={there[key]}" if (key := word.split("=")[0]) in there else word for word in shlex.split(line)]
    outcome = adlight(program, *words, "--cfg", "job")
    assert outcome.code == 0, outcome.err


@cache
def train_settings():
    """Every setting of every model, data set and logger, and the nodes above them."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        choices = [(group, path.stem) for group in GROUPS for path in (CONF / group).glob("[!_]*.yaml")]
        configs = [composed([f"{group}={name}"])[0] for group, name in choices]
    GlobalHydra.instance().clear()
    leaves = {key for config in configs for key in flatten(config)}
    return {".".join(key.split(".")[:n]) for key in leaves for n in range(1, key.count(".") + 2)}


@cache
def known_settings():
    """Those of all programs, Hydra's too; prose may leave out the front part of a name."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        configs = [compose(name, return_hydra_config=True) for name in ("train", "evaluate", *OTHERS)]
    GlobalHydra.instance().clear()
    found = train_settings() | {key for config in configs for key in flatten(config)}
    return found | {key.rpartition(".")[2] for key in found}


def settings(text):
    """Words of a text that are set to something, but in a URL or form: `model.mask_ratio=0.5`, `model/depth=e2d2`."""
    found = re.findall(r"(?<![\w./{<?&-])([a-z]\w*(?:[./][a-z]\w*)*)=(?!=|@|\"|value)", text)
    return {name for name in found if not name.startswith(("hydra.launcher.", "hydra.sweeper."))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_settings_exist(page):
    unknown = {name for name in settings(code(page)) if not (CONF / name).is_dir()} - known_settings()
    assert not unknown


def test_the_readme_names_every_choice():
    rows = dict(re.findall(r"^\| `([\w/]+)=` \| (.*) \|$", README.read_text(), re.M))
    assert {"model", "dataset", "trainer", "logger"} <= rows.keys()
    for group, cell in rows.items():
        choices = {path.stem for path in (CONF / group).glob("*.yaml") if not path.name.startswith("_")}
        assert choices == set(re.findall(r"`(\w+)`", cell)), group


def test_the_default_model_is_the_one_to_begin_with(conf):
    (name,) = re.findall(r"^\| `(\w+)` .*\*\*to begin with\*\*", README.read_text(), re.M)
    assert composed([])[1]["model"] == name


@pytest.mark.parametrize("program", ["train", "evaluate", *OTHERS])
def test_help_has_purpose_examples_and_settings(adlight, program):
    outcome = adlight(program, "--help")
    assert outcome.code == 0 and "Hydra" not in outcome.out and max(map(len, outcome.out.splitlines())) <= 125
    assert outcome.out.count(f"adlight {program} ") >= 2 or program == "predict"
    if program in ("train", "evaluate"):
        assert len(settings(outcome.out)) >= 10
    lines = re.sub(r",\n +", ", ", outcome.out)  # of a group with many choices
    for group, cell in re.findall(r"^ *(\w+): ([\w, ]+)$", lines, re.M) if program == "train" else ():
        choices = {path.stem for path in (CONF / group).glob("*.yaml") if not path.name.startswith("_")}
        assert choices == set(cell.split(", ")), group


def test_nothing_is_collected_at_the_end_of_a_program():
    """Collecting PyTorch's modules takes a second."""
    lines = ["import sys", "from adlight.report import main", "sys.argv[1:] = ['--help']", "main()", "class Node:"]
    lines += ["    def __del__(self):", "        print('collected')", "node = Node()", "node.own = node"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0 and "adlight report" in done.stdout and "collected" not in done.stdout


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_targets_scripts_and_links_exist(page):
    text = code(page)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"^make ([a-z-]+)", text, re.M)) <= targets
    paths = [ROOT / path for path in re.findall(r"\b(?:experiments|tests|adlight|conf)/[\w./]+\.(?:py|sh|csv)", text)]
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert not [path for path in [*paths, *(page.parent / link for link in links)] if not path.exists()]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(ROOT / "experiments").as_posix())
def test_scripts_import_what_there_is(path):
    for module, names in re.findall(r"^ *from (adlight[\w.]*) import ([\w, ]+)", path.read_text(), re.M):
        assert not [name for name in names.split(", ") if not hasattr(import_module(module), name)], module


def test_the_readme_s_python_runs(tmp_path, monkeypatch, capsys):
    (program,) = (text for text in PYTHON.findall(README.read_text()) if "import adlight" in text)
    assert len(program.splitlines()) <= 8
    for name, count in (("good", 14), ("bad", 2)):
        for i in range(count):
            write_image(tmp_path / "parts" / name / f"{i}.png", i, 64)
    write_image(tmp_path / "a.png", 100, 64)  # there is no b.png
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(program.replace("retrieval", "knn"), "README.md", "exec"), names)  # the others take seconds more
    *_, first, second = capsys.readouterr().out.splitlines()
    assert ast.literal_eval(first)["path"] == "a.png" and "b.png" in second
    assert set(names["mistakes"]) > {"path", "score", "anomalous"} and names["run"].metrics["auroc"] >= 0


def test_there_is_something_to_check():
    pages = {one.values[0].parent.name for one in printed("train")}
    assert len(printed("train")) > 20 and {"gan_mnist", "mae_mvtec", "mae_ablation", "experiment"} <= pages
    assert all(printed(program) for program in ("evaluate", *OTHERS))
    assert {"model.mask_ratio", "calibration.image"} <= settings(code(README))
