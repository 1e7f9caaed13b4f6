"""Folders that a command may not write to, and folders in which another process works."""

import os
import shutil
import subprocess
import sys
import time

import pytest
from processes import Command, check_refused
from readers import content, numbers

from adlight.runs.find import check_free, is_training
from adlight.runs.folder import RunFolder
from adlight.types import UserError


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def place(adlight, tiny_run, tmp_path):
    """A folder of a finished run, another one, and a link to it."""
    for name in ("all/run", "all/my run"):
        shutil.copytree(tiny_run[0], tmp_path / name, ignore=shutil.ignore_patterns("evaluations"))
    (tmp_path / "link").symlink_to(tmp_path / "all" / "run")
    return tmp_path


FOLDERS = {
    "the run": "hydra.run.dir={0}/all/run",
    "with a slash": "hydra.run.dir={0}/all/run/",
    "quoted": "hydra.run.dir='{0}/all/my run'",
    "in double quotes": 'hydra.run.dir="{0}/all/my run"',
    "added": "++hydra.run.dir={0}/all/run",
    "with dots": "hydra.run.dir={0}/all/../all/run/checkpoints/..",
    "relative": "hydra.run.dir={1}/all/run",
    "a link": "hydra.run.dir={0}/link",
    "what holds runs": "hydra.run.dir={0}/all",
    "its checkpoints": "hydra.run.dir={0}/all/run/checkpoints",
    "in its checkpoints": "hydra.run.dir={0}/all/run/checkpoints/new",
    "its panels": "hydra.run.dir={0}/all/run/panels",
    "all its evaluations": "hydra.run.dir={0}/all/run/evaluations",
    "an interpolation": "hydra.run.dir=${{oc.env:ADLIGHT_TEST_PLACE}}",
}


@pytest.mark.parametrize("word", FOLDERS.values(), ids=FOLDERS.keys())
def test_no_command_writes_over_a_run(adlight, place, monkeypatch, word):
    monkeypatch.setenv("ADLIGHT_TEST_PLACE", str(place / "all" / "run"))
    word, before = word.format(place, os.path.relpath(place, adlight.folder)), contents(place)
    run, image = place / "all" / "run", adlight.folder / "data" / "bottle" / "test" / "good" / "000.png"
    for words in (
        ("evaluate", f"run={run}", word),
        ("predict", f"run={run}", f"images={image}", "save=none", word),
        ("report", f"runs={run}", f"out={place}/report", word),
        ("train", *adlight.quick, word),
    ):
        check_refused(adlight(*words), "run")
        assert contents(place) == before


@pytest.mark.parametrize("name, words", [
    ("evaluate", ["-m", "ckpt=best,last"]), ("predict", ["-m", "threshold=1,2", "images=data/bottle/test/good"])
])  # fmt: skip
def test_nor_do_several_jobs(adlight, place, name, words):
    before = contents(place)
    for folder in ("all/run", "all", "all/run/checkpoints"):
        outcome = adlight(name, f"run={place}/all/run", *words, f"hydra.sweep.dir={place}/{folder}")
        assert outcome.code == 2 and outcome.err.count("\n") == 1 and "hydra.sweep.dir" in outcome.err, outcome.err
        assert contents(place) == before
    assert adlight("train", "-m", *adlight.quick, "seed=0,1", f"hydra.sweep.dir={place}/all/run").code == 2
    assert contents(place) == before


def test_what_is_no_training_may_be_written_over(adlight, place):
    run = place / "all" / "run"
    for _ in range(2):
        assert adlight("evaluate", f"run={run}", "~callbacks.panels", f"hydra.run.dir={place}/again").code == 0
    assert content(place / "again")["auroc"] == content(run)["auroc"]
    before = contents(place / "again")
    check_refused(adlight("predict", f"run={run}", "images=data", f"hydra.run.dir={place}/again"), "hydra.run.dir")
    assert contents(place / "again") == before
    assert not is_training(RunFolder(place / "again")) and is_training(RunFolder(run))
    assert adlight("evaluate", f"run={run}/", "~callbacks.panels").code == 0
    check_free("x", run / "evaluations" / "new")
    check_free("x", run / "mine")
    check_free("x", place / "nowhere")
    (run / ".hydra" / "config.yaml").write_text("a: [1")
    with pytest.raises(UserError, match=r"x=.* is a run"):
        check_free("x", run)


def test_run_dir_is_not_set_by_itself(adlight, place):
    run, before = place / "all" / "run", contents(place)
    for words in (("train", *adlight.quick), ("evaluate", f"run={run}"), ("train", f"resume={run}")):
        check_refused(adlight(*words, f"run_dir={place}/all/my run"), "hydra.run.dir")
    assert contents(place) == before


@pytest.mark.parametrize("why", ["the disk was full", None])
@pytest.mark.parametrize("word", ["trainer.max_epochs=many", "dataset.root=nowhere"])
def test_a_mistyped_value_keeps_what_a_failed_run_says(adlight, place, word, why):
    """Its config and why it failed, or that it was killed; only the log tells of the new attempt."""
    run = place / "all" / "run"
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.json").unlink()
    if why:
        (run / "error.txt").write_text(f"{why}\n")
    before = {path: content for path, content in contents(run).items() if path.suffix != ".log"}
    check_refused(adlight("train", *adlight.quick, "seed=1", word, f"hydra.run.dir={run}"), word.partition("=")[2])
    assert {path: content for path, content in contents(run).items() if path.suffix != ".log"} == before
    assert RunFolder(run).failure() == why


@pytest.mark.parametrize("where", ["all/run", "all/run/checkpoints", "sweep"])
def test_a_report_is_no_part_of_a_run_or_sweep(adlight, place, where):
    (place / "sweep").mkdir()
    (place / "sweep" / "sweep.json").write_text("{}")
    before = contents(place)
    check_refused(adlight("report", f"runs={place}/all", f"out={place}/{where}"), "out=")
    assert contents(place) == before
    assert adlight("report", f"runs={place}/all/run").code == 0 and (place / "all/run/report/index.html").exists()


def test_of_two_at_once_one_is_refused(adlight, place):
    """The first holds the folder from before Hydra writes there to its end; the second changes nothing."""
    run = place / "new"
    words = [*adlight.quick, f"hydra.run.dir={run}", "+callbacks.trouble._target_=trouble.Trouble"]
    first = Command(adlight.folder, "train", *words, ADLIGHT_TEST_TROUBLE=f"hold {place}/go")
    until = time.monotonic() + 300
    while not (run / "checkpoints" / "last.ckpt").exists() and first.process.is_alive() and time.monotonic() < until:
        time.sleep(0.1)
    before = contents(run)
    for others in (
        ("train", *words, "seed=1"), ("train", f"resume={run}", "trainer.max_epochs=5"),
        ("evaluate", f"run={place}/all/run", f"hydra.run.dir={run}"),
    ):  # fmt: skip
        second = adlight(*others)
        assert second.code == 2 and str(run) in second.err and second.err.count("\n") == 1, second.err
        assert contents(run) == before
    (place / "go").touch()
    first.stop(15)  # it sleeps in the meantime
    code, _, _ = first.wait()
    assert code == 130
    assert adlight("train", f"resume={run}").code == 0
    assert numbers(run) == numbers(place / "all" / "run")


def test_a_folder_that_is_held_before_anything_lies_there(adlight, place):
    script = "import time; from adlight.runs.folder import RunFolder\n"
    script += f"with RunFolder('{place}/new').lock(): time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        while not (place / "new" / ".lock").exists():
            time.sleep(0.05)
        time.sleep(0.2)
        outcome = adlight("train", *adlight.quick, f"hydra.run.dir={place}/new")
        process.kill()
    assert outcome.code == 2 and "another process works in" in outcome.err and outcome.err.count("\n") == 1
    assert [path.name for path in (place / "new").iterdir()] == [".lock"]
    assert adlight("train", *adlight.quick, f"hydra.run.dir={place}/new", "trainer.max_epochs=1").code == 0
