"""Who may import what: the layers of the package, and what --help must not wait for."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "adlight"
FILES = sorted(PACKAGE.rglob("*.py"))
ENTRY_POINTS = {"train", "evaluate", "predict", "report", "doctor"}
ENTRY_POINTS |= {"cli", "configs", "runs", "sweeps", "sweep_table", "launchers", "processes"}  # and what they share
FORBIDDEN = {  # layer: what it must not know of
    "data": {"networks", "objectives", "scoring", "modules", "callbacks", "reports"},
    "networks": {"data", "objectives", "scoring", "modules", "callbacks", "reports", "metrics"},
    "objectives": {"data", "scoring", "modules", "callbacks", "reports", "metrics"},
    "metrics": {"data", "networks", "objectives", "scoring", "modules", "callbacks", "reports"},
    "scoring": {"modules", "callbacks", "reports"},
    "modules": {"callbacks", "reports"},
    "types": {"data", "networks", "objectives", "scoring", "modules", "callbacks", "reports", "metrics"},
    "masking": {"data", "networks", "objectives", "scoring", "modules", "callbacks", "reports", "metrics"},
}


def imports(path):
    """Full names of all that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name_of(path):
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_layers(path):
    layer = name_of(path).partition("/")[0]
    found = {name.split(".")[1] for name in imports(path) if name.startswith("adlight.")}
    assert not found & FORBIDDEN.get(layer, set())
    if layer in FORBIDDEN:
        assert not found & ENTRY_POINTS, "parts do not know the entry points"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_configuration_stays_at_the_entry_points(path):
    found = {name.partition(".")[0] for name in imports(path)} & {"hydra", "omegaconf"}
    assert not found or name_of(path) in ENTRY_POINTS


def test_the_package_is_flat():
    assert all(len(path.relative_to(PACKAGE).parts) <= 2 for path in FILES)


def test_help_waits_for_nothing_heavy(tmp_path):
    program = (
        "import json, runpy, sys\n"
        "for name in ('train', 'evaluate', 'report'):\n"
        "    sys.argv = [f'adlight.{name}', '--help']\n"
        "    try: runpy.run_module(f'adlight.{name}', run_name='__main__')\n"
        "    except SystemExit as ending: assert not ending.code\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "model: " in done.stdout and "mae_small" in done.stdout and "trainer: " in done.stdout
    heavy = {"torch", "torchvision", "pytorch_lightning", "kornia", "lpips", "wandb", "matplotlib", "scipy", "numpy"}
    found = heavy & set(json.loads(done.stderr.splitlines()[-1]))
    assert not found
    assert not list(tmp_path.iterdir()), "--help leaves nothing behind"
