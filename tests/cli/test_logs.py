"""A single training leaves behind what it printed and, if it fails, why."""

import os
from pathlib import Path

import pytest
from processes import check_refused

from adlight import train
from adlight.reports.collect import collect
from adlight.runs.log import copy_output, log_line
from adlight.types import UserError


def problem(run):
    return collect([str(run)]).problems[run.name]


def test_the_log_holds_what_the_terminal_showed(tiny_run):
    run, out = tiny_run
    log = (run / "train.log").read_text()  # later tests try to resume the same run, in vain
    assert log.strip().startswith(out[out.index("run folder: ") :].strip())
    assert out.splitlines()[-1].endswith(f"use it: adlight predict run={run} images=<file or folder>")
    assert "epoch 1/2" in out and "data: " in out and "AUROC" in out and not (run / "error.txt").exists()


def test_a_mistake_is_told_and_leaves_no_folder_of_its_own(adlight, monkeypatch):
    run, words = adlight.folder / "runs" / "mistake", [*adlight.quick, "dataset.category=botle"]
    check_refused(adlight("train", *words, f"hydra.run.dir={run}"), "did you mean bottle?")
    monkeypatch.chdir(adlight.folder)
    with pytest.raises(UserError, match="bottle"):
        train(*words, run_dir=run)
    assert not run.exists()
    run.mkdir()  # by the user
    assert adlight("train", *words, f"hydra.run.dir={run}").code == 2
    assert problem(run).startswith("failed. ") and "did you mean bottle?" in problem(run)
    assert "did you mean bottle?" in (run / "train.log").read_text()
    adlight.train(*adlight.quick, "trainer.max_epochs=1", f"hydra.run.dir={run}")
    assert not (run / "error.txt").exists() and collect([str(run)]).problems == {}


def test_a_crash_has_its_traceback_in_the_log(adlight, monkeypatch):
    monkeypatch.setenv("ADLIGHT_TEST_TROUBLE", "break 0")
    run = adlight.folder / "runs" / "crash"
    with pytest.raises(ZeroDivisionError):
        adlight("train", *adlight.quick, "+callbacks.trouble._target_=trouble.Trouble", f"hydra.run.dir={run}")
    assert "ZeroDivisionError: nothing left" in problem(run) and "train.log" in problem(run)
    assert "Traceback" in (run / "train.log").read_text()
    monkeypatch.delenv("ADLIGHT_TEST_TROUBLE")
    assert adlight("train", f"resume={run}").code == 0 and collect([str(run)]).problems == {}


def test_an_evaluation_leaves_its_log_and_why_it_failed(adlight, tiny_run, tmp_path):
    words = ["evaluate", f"run={tiny_run[0]}", "~callbacks.panels", "~callbacks.gallery", f"hydra.run.dir={tmp_path}"]
    assert adlight(*words, "ckpt=nowhere.ckpt").code == 2
    assert "nowhere.ckpt" in problem(tmp_path) and "error: " in (tmp_path / "evaluate.log").read_text()
    outcome = adlight(*words)
    assert outcome.code == 0 and (tmp_path / "evaluate.log").read_text().endswith(outcome.out.lstrip())
    assert not (tmp_path / "error.txt").exists() and collect([str(tmp_path)]).problems == {}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full disk to try")
def test_a_full_disk_spoils_the_log_alone(capsys):
    with copy_output(Path("/dev/full")):
        print("shown", flush=True)
        log_line("error: the reason")
    assert capsys.readouterr().out == "shown\n"
