"""The rules of the house: one direction of imports, one home for file names, files and functions that fit a screen."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PACKAGE = Path(__file__).parents[1] / "adlight"
FILES = sorted(PACKAGE.rglob("*.py"))
FLOORS = (  # a room imports rooms of the floors above it in this list, and itself
    {"types"},
    {"faults", "locks", "progress", "rng"},
    {"settings"},
    {"data", "metrics"},
    {"detection"},
    {"features"},
    {"baselines", "gan", "learning", "mae", "memory"},
    {"distillation", "reconstruction", "rotation"},
    {"runs"},
    {"callbacks", "detector", "loggers", "reports"},
    {"cli", "prediction", "serving"},
    {"api"},
    {"doctor", "export", "predict", "report", "serve", "train"},
    {"evaluate", "federated", "group", "learn"},  # they build as train does
    {"federate"},
    {"__main__"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
KNOW_CONFIGS = {"cli", "runs", "api", *FLOORS[-4], *FLOORS[-3], *FLOORS[-2]} - {"federated"}
INTERFACES = ("Source", "AnomalyDetector")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 200, 45


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def name_of(path):
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def calls(tree, *names):
    """Calls of functions by their last name, with a constant text as first argument."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in names:
                yield str(node.args[0].value)


def imports(path):
    """Full names of all that a file imports: inside functions, for types only, and by name too."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
    yield from calls(tree, "import_module", "__import__", "run_module", "get_class", "get_method", "locate")


def texts(path):
    """All constant texts of a file but its docstrings."""
    tree = ast.parse(path.read_text())
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    documented = [node for node in ast.walk(tree) if isinstance(node, holders) and ast.get_docstring(node) is not None]
    docstrings = {id(node.body[0].value) for node in documented}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def test_every_room_has_its_floor():
    assert {room_of(path) for path in FILES} - {"__init__"} <= set(FLOOR)


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) != "__init__"], ids=name_of)
def test_imports_run_one_way(path):
    room = room_of(path)
    rooms = {name.split(".")[1] for name in imports(path) if name.startswith("adlight.")} - {room, "__version__"}
    upwards = {other for other in rooms if FLOOR[other] >= FLOOR[room]}
    assert not upwards, f"{name_of(path)} may not import {', '.join(sorted(upwards))}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_configs_stay_above_the_detectors(path):
    found = {name.partition(".")[0] for name in imports(path)} & {"hydra", "omegaconf"}
    assert not found or room_of(path) in KNOW_CONFIGS


def test_only_runs_knows_a_file_name_of_a_run_folder(tiny_run):
    run, _ = tiny_run
    left = {path.name for path in run.rglob("*") if path.is_file() and path.suffix != ".png"} | {
        ".hydra",
    }
    left |= {"wandb.json", "job.json", "error.txt", "sweep.json", "sweep.log"}  # of W&B and sweeps
    left |= {"predictions.jsonl", "regions.json", "unreadable.csv", "predictions.part"}  # for new images
    assert {"metrics.json", "predictions.csv", "last.ckpt", "run.json", "config.yaml"} <= left
    pattern = re.compile("|".join(rf"(?<![\w.-]){re.escape(name)}(?![\w-])" for name in sorted(left)))
    for path in FILES:
        if room_of(path) != "runs":
            assert not [text for text in texts(path) if pattern.search(text)], name_of(path)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_decision_depends_on_the_wording_of_a_message(path):
    """No `... in str(error)` and the like."""
    tree = ast.parse(path.read_text())
    caught = {node.name for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)} - {None}
    compared = [part for node in ast.walk(tree) if isinstance(node, ast.Compare) for part in ast.walk(node)]
    texts_of = [part for part in compared if isinstance(part, ast.Call) and ast.unparse(part.func) == "str"]
    assert not [call for call in texts_of if ast.unparse(call.args[0]) in caught]


def test_the_releases_of_lightning_that_stole_credentials_are_excluded():
    dependencies = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]["dependencies"]
    (lightning,) = (one for one in map(Requirement, dependencies) if one.name == "pytorch-lightning")
    assert not any(lightning.specifier.contains(bad) for bad in ("2.6.2", "2.6.3"))
    assert lightning.specifier.contains("2.6.4")


def test_the_package_is_flat():
    assert all(len(path.relative_to(PACKAGE).parts) <= 2 for path in FILES)
    assert not [path for path in FILES if path.stem in ("utils", "util", "helpers", "misc")]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_fit_a_screen(path):
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) is not None and node.body[1:] else node.body[0]
            length = (node.end_lineno or 0) - first.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{name_of(path)}.{node.name} has {length} lines"


def test_inheritance_is_one_step():
    """Below Lightning's classes, torch's, and `Source` and `AnomalyDetector`, which are interfaces."""
    bases = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = [
                    base.id for base in node.bases if isinstance(base, ast.Name) and base.id not in INTERFACES
                ]
    deep = [name for name, own in bases.items() for base in own if any(up in bases for up in bases.get(base, []))]
    assert not deep


def test_help_waits_for_nothing_heavy(tmp_path):
    program = (
        "import json, runpy, sys\n"
        "for name in ('train', 'evaluate', 'export', 'federate', 'report', 'serve'):\n"
        "    sys.argv = [f'adlight.{name}', '--help']\n"
        "    try: runpy.run_module(f'adlight.{name}', run_name='__main__')\n"
        "    except SystemExit as ending: assert not ending.code\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "model: " in done.stdout and "mae_small" in done.stdout and "trainer: " in done.stdout
    heavy = {"torch", "torchvision", "pytorch_lightning", "kornia", "lpips", "wandb", "matplotlib", "scipy", "numpy"}
    heavy |= {"pandas", "itables", "timm", "fastapi", "uvicorn", "flwr"}
    found = heavy & set(json.loads(done.stderr.splitlines()[-1]))
    assert not found
    assert not list(tmp_path.iterdir()), "--help leaves nothing behind"
