"""An installed package carries its configs."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from adlight.runs.config import CONF

ROOT = Path(__file__).parents[1]


def test_configs_are_found_and_packed():
    assert (CONF / "train.yaml").is_file() and (CONF / "evaluate.yaml").is_file()
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(wheel["only-include"]) == {"adlight", "conf", "hydra_plugins"}
    assert wheel["sources"] == {"conf": "adlight/conf"}  # where configs.CONF looks first


@pytest.mark.slow
def test_a_wheel_works_in_an_empty_folder(tmp_path):
    words = ["wheel", "--no-deps", "--quiet", "--wheel-dir", tmp_path, ROOT]
    subprocess.run([sys.executable, "-m", "pip", *map(str, words)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    unpacked, empty = tmp_path / "unpacked", tmp_path / "empty"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    empty.mkdir()
    packed = {
        path.relative_to(unpacked / "adlight" / "conf") for path in (unpacked / "adlight" / "conf").rglob("*.yaml")
    }
    assert packed == {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    assert (unpacked / "adlight" / "reports" / "page.html.j2").is_file() and (
        unpacked / "adlight" / "py.typed"
    ).is_file()
    assert "adlight = adlight.__main__:main" in next(unpacked.glob("*.dist-info/entry_points.txt")).read_text()
    program = (
        f"import sys, runpy; sys.path.insert(0, {str(unpacked)!r}); sys.argv[1:] = ['--help']\n"
        "try: runpy.run_module('adlight.train', run_name='__main__')\n"
        "finally: import adlight.runs.config; print(adlight.runs.config.CONF)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=empty, capture_output=True, text=True, check=True)
    assert "mae_small" in done.stdout and done.stdout.strip().endswith(str(unpacked / "adlight" / "conf"))


def test_the_package_is_typed():
    assert (ROOT / "adlight" / "py.typed").is_file()


@pytest.mark.slow
def test_a_user_s_script_is_checked_by_our_types(tmp_path):
    (tmp_path / "script.py").write_text(
        "import adlight\n"
        "run = adlight.train('model=pca', root='parts')\n"
        "reveal_type(run)\n"
        "reveal_type(run.metrics['auroc'])\n"
        "reveal_type(adlight.load('x').detector())\n"
        "for one in run.detector()(['a.png']):\n"
        "    reveal_type(one.as_dict())\n"
        "adlight.load(3)\n"
    )
    words = ["--follow-imports=silent", "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *words, "script.py"], cwd=tmp_path, capture_output=True, text=True
    )
    for line, found in ((3, "adlight.api.Run"), (4, "float"), (5, "adlight.detector.Detector"), (7, "dict[str")):
        assert re.search(rf'script.py:{line}: note: Revealed type is ".*{re.escape(found)}', done.stdout), done.stdout
    assert done.stdout.count(": error:") == 1 and "script.py:8: error" in done.stdout
