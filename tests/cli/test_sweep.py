"""Sweeps through the command line: what each job leaves, what is skipped, what goes on, what a failure costs."""

import json
import re
import shutil
import signal
import time
from itertools import product
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from makers import composed
from processes import Command, check_refused
from readers import table

from adlight.cli.arguments import multirun_argv
from adlight.cli.job import job_name
from adlight.runs.config import CONF

TROUBLE = "+callbacks.trouble._target_=trouble.Trouble"


def results(sweep):
    """The rows of a sweep's table by the names of its jobs."""
    return {row["name"]: row for row in table(sweep / "results.csv")}


def same_numbers(one, other):
    """Whether two runs have computed the same, to the digit."""
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in ("predictions.csv", "metrics.csv"))


@pytest.fixture(scope="module")
def two_seeds(adlight):
    """A complete sweep of two jobs, to be looked at but not changed: its folder and what it printed."""
    outcome = adlight("train", "-m", *adlight.quick, "seed=0,1", "hydra.sweep.dir=runs/seeds")
    assert outcome.code == 0, outcome.err
    return adlight.folder / "runs" / "seeds", outcome.out


@pytest.fixture
def copied(two_seeds, adlight, tmp_path):
    """A copy of it that may be changed."""
    return shutil.copytree(two_seeds[0], tmp_path / "sweep")


def go_on(adlight, sweep, *words):
    return adlight("train", *adlight.quick, "-m", *words, "resume_sweep=true", f"hydra.sweep.dir={sweep}")


def test_each_job_is_a_run_of_its_own(adlight, two_seeds, tiny_run):
    sweep, _ = two_seeds
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == ["seed-0", "seed-1"]
    found = {str(path.relative_to(sweep / "seed-1")) for path in (sweep / "seed-1").rglob("*") if path.is_file()}
    assert found == {
        *(f".hydra/{name}.yaml" for name in ("config", "hydra")),
        *(".lock", "job.json", "run.json", "train.log", "checkpoints/best.ckpt", "checkpoints/last.ckpt"),
        "checkpoints.sha256",
        *("metrics.csv", "metrics.json", "predictions.csv", "defects.csv", "calibration.csv", "trained.csv"),
    }
    assert same_numbers(sweep / "seed-0", tiny_run[0])  # the single run with the same settings
    again = adlight.evaluate(sweep / "seed-1")
    assert (again / "predictions.csv").read_bytes() == (sweep / "seed-1" / "predictions.csv").read_bytes()
    shutil.rmtree(sweep / "seed-1" / "evaluations")


def test_a_job_s_command_does_it_alone(adlight, two_seeds):
    sweep, _ = two_seeds
    command = json.loads((sweep / "seed-1" / "run.json").read_text())["command"].split()
    assert command[:2] == ["adlight", "train"] and "seed=1" in command
    assert same_numbers(adlight.train(*(word.strip("'") for word in command[2:])), sweep / "seed-1")


def test_the_table_says_what_the_jobs_found(two_seeds):
    sweep, out = two_seeds
    rows = results(sweep)
    assert list(rows) == ["seed-0", "seed-1"]
    for number, (name, row) in enumerate(rows.items()):
        found = json.loads((sweep / name / "metrics.json").read_text())
        curve = [float(epoch["val/auroc"]) for epoch in table(sweep / name / "metrics.csv")]
        assert row["status"] == "finished" and row["job"] == str(number) and row["error"] == ""
        for key in ("auroc", "ap", "f1_max", "pixel_auroc", "aupro"):
            assert float(row[key]) == found[key]
        assert float(row["val/auroc"]) == max(curve)  # the best epoch's, which is what was tested
        assert f"seed={number}" in row["overrides"].split() and Path(row["folder"]).name == name
        line = next(line for line in out.splitlines() if f"│ {name} " in line)
        assert f" {found['auroc']:.3f} " in line


def test_given_again_it_must_be_asked_to_go_on(adlight, two_seeds):
    outcome = adlight("train", "-m", *adlight.quick, "seed=0,1", "hydra.sweep.dir=runs/seeds")
    assert outcome.code == 2 and outcome.err == (
        "error: runs/seeds already holds a sweep: resume it with resume_sweep=true, or choose another hydra.sweep.dir\n"
    )


def test_finished_jobs_are_skipped_and_new_ones_added(adlight, copied):
    before = {
        path: path.stat().st_mtime_ns for path in copied.rglob("*.*") if path.suffix in (".ckpt", ".json", ".csv")
    }
    outcome = go_on(adlight, copied, "seed=1,7,0")
    assert outcome.code == 0, outcome.err
    changed = {path.name for path, stamp in before.items() if path.stat().st_mtime_ns != stamp}
    assert changed == {"sweep.json", "results.csv", "job.json"}  # the words, the new row, the new numbers
    rows = results(copied)
    assert list(rows) == ["seed-1", "seed-7", "seed-0"] and {row["status"] for row in rows.values()} == {"finished"}


def test_a_setting_fixed_on_the_command_line_stays_fixed(adlight):
    """`sweep=seeds` would vary the seed; with `seed=3` nothing varies, the second time as little as the first."""
    words = ("sweep=seeds", "seed=3", "trainer.max_epochs=1", "hydra.sweep.dir=runs/fixed")
    assert adlight("train", *adlight.quick, *words).code == 0
    sweep = adlight.folder / "runs" / "fixed"
    assert list(results(sweep)) == ["job"] and json.loads((sweep / "sweep.json").read_text())["varied"]["seed"] is False
    outcome = adlight("train", *adlight.quick, *words, "resume_sweep=true")
    assert outcome.code == 0 and "job 0 (job) is finished: skipped" in outcome.out, outcome.err
    assert list(results(sweep)) == ["job"]


def test_seconds_count_what_was_done_before_the_job_went_on(adlight, copied):
    last = copied / "seed-1" / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    assert 0 < content["callbacks"]["BestAndLast"]["seconds"] < 1000
    content["callbacks"]["BestAndLast"]["seconds"] = 100_000.0
    torch.save(content, last)
    (copied / "seed-1" / "checkpoints.sha256").unlink()  # else the checkpoint would be one that was damaged
    (copied / "seed-1" / "metrics.json").unlink()
    assert go_on(adlight, copied, "seed=0,1").code == 0
    rows = results(copied)
    assert float(rows["seed-1"]["seconds"]) >= 100_000 > float(rows["seed-0"]["seconds"])


def test_a_job_left_unfinished_is_no_good_end(adlight, copied):
    (copied / "seed-1" / "metrics.json").unlink()
    outcome = go_on(adlight, copied, "seed=0")
    assert outcome.code == 2 and outcome.err.startswith("error: job 1 (seed-1): unfinished\nfinished jobs and epochs")


def test_a_launcher_that_breaks_down_costs_one_line(adlight, monkeypatch):
    def launch(*_, **__):
        raise RuntimeError("a worker was killed\nand more that nobody reads")

    monkeypatch.setattr("hydra.core.plugins.Plugins.instantiate_launcher", launch)
    outcome = adlight("train", "-m", *adlight.quick, "seed=0,1", "hydra.sweep.dir=runs/broken_off")
    first, second = outcome.err.splitlines()
    assert outcome.code == 2 and first == (
        "error: the sweep crashed: RuntimeError: a worker was killed (traceback in runs/broken_off/sweep.log)"
    )
    assert second.endswith("resume_sweep=true hydra.sweep.dir=runs/broken_off")
    assert "Traceback" in (adlight.folder / "runs" / "broken_off" / "sweep.log").read_text()


def test_to_go_on_needs_a_folder(adlight):
    before = set((adlight.folder / "runs").glob("*"))
    for words in ("resume_sweep=true", "resume_sweep=true hydra.sweep.dir=runs/mistyped", "hydra.sweep.dir=data"):
        outcome = adlight("train", "-m", *adlight.quick, "seed=0,1", *words.split())
        assert outcome.code == 2 and "hydra.sweep.dir=" in outcome.err and words.split("=")[-1] in outcome.err
        assert outcome.err.count("\n") == 1 and set((adlight.folder / "runs").glob("*")) == before


def test_a_mistyped_setting_leaves_no_sweep_that_could_go_on(adlight):
    outcome = adlight("train", "-m", *adlight.quick, "model.maskratio=0.5,0.75", "hydra.sweep.dir=runs/mistyped")
    check_refused(outcome, "maskratio", "mask_ratio")
    assert not (adlight.folder / "runs" / "mistyped").exists()


def test_a_sweep_s_config_can_be_shown(adlight):
    for flag in ("--cfg", "-c"):
        outcome = adlight("train", "-m", "sweep=mae_ablation", "seed=0,1", flag, "job")
        assert outcome.code == 0 and "mask_ratio: 0.75" in outcome.out, outcome.err
    words = ["--config-dir", "more", "seed=0,1"]
    assert multirun_argv(words)[:4] == ["--multirun", *words]


def test_a_key_given_once_more_with_several_values_keeps_its_first_when_the_command_is_repeated(copied):
    words = ("seed=5", "seed=0,1", f"hydra.sweep.dir={copied}")
    assert multirun_argv(words)[1:4] == list(words)
    assert "seed=choice(5)" in multirun_argv(words[::2]), "a further job"


def test_a_sweep_with_other_settings_is_refused(adlight, copied):
    outcome = go_on(adlight, copied, "seed=0,1", "trainer.max_epochs=3")
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert re.search(r"\btrainer\.max_epochs\b.*\b2\b.*\b3\b", outcome.err)
    assert "max_epochs: 2" in (copied / "seed-0" / ".hydra" / "config.yaml").read_text()


def test_no_folder_is_taken_for_another_job_s(adlight, copied):
    """Names that agree by accident, or by a hand that moved them."""
    (copied / "seed-1").rename(copied / "seed-5")
    outcome = go_on(adlight, copied, "seed=5")
    assert outcome.code == 2 and re.search(r"\bseed\b.*\b1\b.*\b5\b", outcome.err)
    assert "seed: 1" in (copied / "seed-5" / ".hydra" / "config.yaml").read_text()
    assert results(copied)["seed-5"]["status"] == "failed"
    (copied / "seed-5" / "job.json").unlink()  # as if it had been trained by hand
    assert go_on(adlight, copied, "seed=5").code == 2 and results(copied)["seed-5"]["status"] == "failed"


def test_a_failed_job_is_a_row_and_the_others_go_on(adlight):
    words = [*adlight.quick, "hydra.sweep.dir=runs/failing"]
    outcome = adlight("train", "-m", *words, "dataset.category=botle,screw", "trainer.max_epochs=1")
    sweep = adlight.folder / "runs" / "failing"
    assert outcome.code == 2 and "Traceback" not in outcome.out + outcome.err
    error = (sweep / "category-botle" / "error.txt").read_text()
    assert "'botle'" in error and "did you mean bottle?" in error and error.count("\n") == 1
    lines = outcome.err.splitlines()
    assert lines[0] == f"error: job 0 (category-botle): {error.strip()}"
    assert lines[1].startswith("finished jobs and epochs are kept. Continue with: adlight train --multirun ")
    assert lines[1].endswith("resume_sweep=true hydra.sweep.dir=runs/failing") and len(lines) == 2
    rows = results(sweep)
    assert [rows[name]["status"] for name in rows] == ["failed", "finished"]
    assert rows["category-botle"]["error"] == error.strip() and rows["category-botle"]["auroc"] == ""
    assert rows["category-botle"]["log"] == "runs/failing/category-botle/train.log"
    assert "did you mean bottle?" in (sweep / "category-botle" / "train.log").read_text()


def test_our_own_mistake_ends_one_job_only_and_leaves_its_traceback(adlight, monkeypatch):
    words = [TROUBLE, "seed=0,1", "hydra.sweep.dir=runs/broken"]
    monkeypatch.setenv("ADLIGHT_TEST_TROUBLE", "break 0")
    outcome = adlight("train", "-m", *adlight.quick, *words)
    sweep = adlight.folder / "runs" / "broken"
    assert outcome.code == 2 and outcome.err.count("ZeroDivisionError: nothing left to divide by") == 2
    assert [row["status"] for row in results(sweep).values()] == ["failed", "failed"]
    assert "Traceback" not in outcome.out + outcome.err
    assert "Traceback" in (sweep / "seed-0" / "train.log").read_text()
    assert not (sweep / "seed-0" / "metrics.json").exists()
    monkeypatch.delenv("ADLIGHT_TEST_TROUBLE")
    outcome = adlight("train", "-m", *adlight.quick, *words, "resume_sweep=true")  # goes on from the first epoch
    assert outcome.code == 0, outcome.err
    assert [row["status"] for row in results(sweep).values()] == ["finished", "finished"]
    assert not (sweep / "seed-0" / "error.txt").exists()
    assert outcome.out.count("epoch 1/2") == 0 and outcome.out.count("epoch 2/2") == 2


def begun(adlight, sweep, *words):
    """A sweep in a process of its own that has done its first epoch, and does not end the second."""
    command = Command(adlight.folder, "train", "-m", *words, ADLIGHT_TEST_TROUBLE="hold")
    until = time.monotonic() + 600
    while not (sweep / "seed-0" / "checkpoints" / "last.ckpt").exists() and time.monotonic() < until:
        time.sleep(0.1)
        assert command.process.is_alive(), command.wait()
    return command


def test_killed_and_on_as_if_nothing_had_happened(adlight, two_seeds):
    words = [*adlight.quick, TROUBLE, "seed=0,1", "hydra.sweep.dir=runs/killed"]
    sweep = adlight.folder / "runs" / "killed"
    command = begun(adlight, sweep, *words)
    command.stop(signal.SIGKILL)
    command.wait()
    outcome = adlight("train", "-m", *words, "resume_sweep=true")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("epoch 1/2") == 1, "the finished epoch is not done again"
    for name in ("seed-0", "seed-1"):
        assert same_numbers(sweep / name, two_seeds[0] / name)


def test_terminated_it_says_how_to_go_on(adlight):
    sweep = adlight.folder / "runs" / "terminated"
    command = begun(adlight, sweep, *adlight.quick, TROUBLE, "seed=0,1", "hydra.sweep.dir=runs/terminated")
    command.stop(signal.SIGTERM)
    code, _, err = command.wait()
    assert code == 130 and "Traceback" not in err, err
    assert err.splitlines()[-1].endswith("resume_sweep=true hydra.sweep.dir=runs/terminated")
    assert {name: row["status"] for name, row in results(sweep).items()} == {"seed-0": "unfinished"}


def test_any_group_may_be_swept(adlight):
    words = [word for word in adlight.quick if not word.startswith(("model=", "dataset=", "trainer="))]
    outcome = adlight(
        *("train", "-m", *words, "model=mae,mae_small", "dataset=labelled_folder,mvtec", "trainer=debug"),
        *("hydra.sweep.dir=runs/groups", "trainer.max_epochs=1", "model.objective.lpips=0"),
    )
    sweep = adlight.folder / "runs" / "groups"
    rows = results(sweep)
    assert set(rows) == {
        f"dataset-{dataset}_model-{model}" for dataset in ("labelled_folder", "mvtec") for model in ("mae", "mae_small")
    }
    assert outcome.code == 2, "what one data set needs, another does not know"
    assert all((row["status"] == "finished") == ("mvtec" in name) for name, row in rows.items())


NAMES = {
    "what varies only": ("model=mae seed=1 model.mask_ratio=0.5", "model", "mask_ratio-0.5_seed-1"),
    "whatever the order": ("model.mask_ratio=0.5 seed=1 model=mae", "model", "mask_ratio-0.5_seed-1"),
    "groups": ("model/depth=e2d4", "", "depth-e2d4"),
    "same last words": ("a.seed=1 b.seed=2", "", "a.seed-1_b.seed-2"),
    "nothing": ("seed=1", "seed", "job"),
}


@pytest.mark.parametrize("case", NAMES.values(), ids=NAMES.keys())
def test_names(case):
    overrides, fixed, name = case
    assert job_name(overrides.split(), dict.fromkeys(fixed.split(), False)) == name


def test_names_of_values_that_folders_cannot_have():
    values = ("[a,b]", "[a,c]", "'a b'", "a/b", "x" * 200)
    names = [job_name([f"dataset.category={value}"], {}) for value in values]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,120}", name) for name in names), names
    assert len(set(names)) == len(names)


def swept(name):
    """The overrides of each job of a sweep, as Hydra's own sweeper multiplies them out."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"sweep={name}"], return_hydra_config=True)
    GlobalHydra.instance().clear()
    words = [f"{key}={value}" for key, value in config.hydra.sweeper.params.items()]
    (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)
    assert config.hydra.mode.name == "MULTIRUN" and f"/{name}-" in config.hydra.sweep.dir
    return jobs


def test_the_article_s_24_cells():
    jobs = swept("mae_ablation")
    depths = ("e2d2", "e4d2", "e6d6", "e12d8", "e8d12", "e2d4")
    cells = product((0.5, 0.75, 0.8, 0.9), depths)
    assert jobs == [[f"model.mask_ratio={ratio}", f"model/depth={depth}"] for ratio, depth in cells] and len(jobs) == 24
    config = composed("sweep=mae_ablation", *jobs[-2])
    network = config.model.network
    assert (config.model.mask_ratio, network.encoder_depth, network.decoder_depth) == (0.9, 8, 12)
    assert network.encoder_width == 768 and config.dataset.source._target_.endswith("MVTecAD")
    assert config.trainer.max_epochs == 1000


def test_the_other_sweeps():
    assert [job for (job,) in swept("digits")] == [f"dataset.normal={digit}" for digit in range(10)]
    assert [job for (job,) in swept("seeds")] == [f"seed={seed}" for seed in range(5)]
    categories = [job.partition("=")[2] for (job,) in swept("categories")]
    assert categories[0] == "all" and len(set(categories)) == 16


def test_a_missing_plugin_is_named(adlight):
    try:
        import hydra_plugins.hydra_ray_launcher  # noqa: F401
    except ImportError:
        outcome = adlight("train", "-m", *adlight.quick, "hydra/launcher=ray_local", "seed=0,1")
        assert outcome.code == 2 and "pip install 'adlight[ray]'" in outcome.err
