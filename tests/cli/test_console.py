"""The command `adlight` is the programs by their names."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from adlight import __main__, __version__

ROOT = Path(__file__).parents[2]


@pytest.fixture
def console(monkeypatch, capsys):
    """Run the command in this process. -> exit code, and what it printed."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["adlight", *words])
        code = 0
        try:
            __main__.main()
        except SystemExit as ending:
            code = ending.code
        return code, *capsys.readouterr()

    return run


def test_it_is_installed_by_that_name():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"adlight": f"{__main__.__name__}:main"}


def test_help_and_version(console):
    for words in ((), ("--help",), ("help",)):
        code, out, _ = console(*words)
        assert code == 0 and all(f"  {name} " in out for name in __main__.COMMANDS)
    assert console("--version")[1].strip() == f"adlight {__version__}"
    assert {path.stem for path in (ROOT / "conf").glob("*.yaml")} == set(__main__.COMMANDS)


def test_an_unknown_command_names_the_nearest(console):
    code, out, err = console("trian", "model=pca")
    assert code == 2 and not out and err.count("\n") == 1 and "'trian'" in err and "mean train?" in err


def test_a_command_is_the_module_s(tmp_path):
    """Its line and its exit code."""
    words = ["predict", "run=nowhere", "images=x"]
    done = subprocess.run([sys.executable, "-m", "adlight", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: nowhere") and done.stderr.count("\n") == 1


def test_it_runs_the_module_as_python_m_does(console, monkeypatch):
    """Lightning and multiprocessing start their processes by the name of the main module."""
    seen = {}

    def note(name, run_name, alter_sys):
        seen.update(name=name, run_name=run_name, words=sys.argv[1:], alter_sys=alter_sys, path=sys.path[:])

    monkeypatch.setattr("runpy.run_module", note)
    monkeypatch.setattr(sys, "path", ["elsewhere"])
    assert console("train", "model=pca", "-m")[0] == 0
    assert seen.pop("path") == [os.getcwd(), "elsewhere"]
    assert seen == {"name": "adlight.train", "run_name": "__main__", "words": ["model=pca", "-m"], "alter_sys": True}
