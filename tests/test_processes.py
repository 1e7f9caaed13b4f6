"""Trainings and tests in processes of their own: stopped and resumed, and shared by several."""

import os
import shutil
import signal
import sys
import time

from processes import Command, in_processes
from readers import numbers, table


def test_ctrl_c_and_on_as_if_nothing_had_happened(adlight):
    words = [*adlight.quick, "seed=3", "+callbacks.trouble._target_=trouble.Trouble", "trainer.max_epochs=3"]
    run = adlight.folder / "runs" / "stopped"
    stopped = Command(adlight.folder, "train", *words, "hydra.run.dir=runs/stopped", ADLIGHT_TEST_TROUBLE="hold")
    until, hashes = time.monotonic() + 600, run / "checkpoints.sha256"
    while not (hashes.exists() and "last.ckpt" in hashes.read_text()):  # written after the epoch's row and checkpoint
        assert stopped.process.is_alive() and time.monotonic() < until
        time.sleep(0.1)
    stopped.stop(signal.SIGINT)
    code, _, err = stopped.wait()
    assert code == 130, err
    lines = [line for line in err.splitlines() if line.startswith("stopped. ")]
    assert lines == [
        f"stopped. The state of the last finished epoch is saved. Continue with: adlight train resume={run}"
    ]
    assert "Traceback" not in err
    assert not (run / "metrics.json").exists()
    whole = adlight.train(*words, "hydra.run.dir=runs/whole")
    outcome = adlight("train", *words, "resume=auto")
    assert outcome.code == 0 and f"run folder: {run}\n" in outcome.out
    assert [row["epoch"] for row in table(run / "metrics.csv")] == ["0", "1", "2"]
    assert (run / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert (run / "predictions.csv").read_bytes() == (whole / "predictions.csv").read_bytes()
    assert numbers(run) == numbers(whole)


def assert_the_same(one, other):
    assert numbers(one) == numbers(other)
    for name in ("predictions.csv", "defects.csv", *(f"panels/{path.name}" for path in (one / "panels").iterdir())):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_two_processes(adlight):
    """An odd test set: no image is lost, and none is counted twice."""
    words = [*adlight.tiny, "dataset.category=bottle", "trainer.devices=2", "trainer.strategy=ddp"]
    out = in_processes(adlight, "train", *words, "trainer.accelerator=cpu", "hydra.run.dir=runs/by_two")
    assert out.count("test results") == 1
    two = adlight.folder / "runs" / "by_two"
    assert len(table(two / "predictions.csv")) == 9
    assert [row["epoch"] for row in table(two / "metrics.csv")] == ["0", "1"]
    assert (two / "panels" / "bottle.png").exists()
    one = adlight.evaluate(two, "trainer.devices=1", "trainer.strategy=auto")
    assert_the_same(one, two)


def test_the_process_that_fails_first_is_recorded(adlight):
    """The other one only loses its connection."""
    words = [*adlight.quick, "trainer.devices=2", "trainer.strategy=ddp", "hydra.run.dir=runs/one_breaks"]
    words += ["+callbacks.trouble._target_=trouble.Trouble"]
    trouble = {"ADLIGHT_TEST_TROUBLE": "break 1", "PYTHONPATH": os.pathsep.join(sys.path)}
    code, _, err = Command(adlight.folder, "train", *words, **trouble).wait()
    run = adlight.folder / "runs" / "one_breaks"
    assert code != 0 and (run / "error.txt").read_text().startswith("process 1: ZeroDivisionError")
    assert f"error: process 1: ZeroDivisionError: nothing left to divide by (see {run / 'train.log'})" in err
    assert (run / "train.log").read_text().count("ZeroDivisionError: ") == 1


def test_three_processes_calibrate_and_test_as_one(adlight, tiny_run):
    """Numbers, predictions and panels are the same to the byte where no process has as many images as the others."""
    shutil.copytree(adlight.folder / "data", adlight.folder / "seventeen")
    (adlight.folder / "seventeen" / "screw" / "test" / "good" / "002.png").unlink()
    words = ["dataset.root=seventeen", "dataset.eval_batch_size=1"]  # a CPU may round differently in other batches
    folder = adlight.folder / "evaluated by three"
    several = ["trainer.devices=3", "trainer.strategy=ddp", f"hydra.run.dir='{folder}'"]
    in_processes(adlight, "evaluate", f"run={tiny_run[0]}", *words, *several)
    assert len(table(folder / "predictions.csv")) == 17
    assert_the_same(folder, adlight.evaluate(tiny_run[0], *words))
