"""Sweeps by the engines that exist for scale: each in processes of its own, so all but the smallest are slow."""

import csv
import importlib.util
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from adlight.runs.config import CONF

TESTS = Path(__file__).parents[1]
CLUSTER = TESTS / "slurm" / "cluster.sh"
NUMBERS = ("val/auroc", "auroc", "ap", "f1_max", "f1_calibrated", "pixel_auroc", "aupro")


def has(plugin):
    return importlib.util.find_spec("hydra_plugins") is not None and importlib.util.find_spec(f"hydra_plugins.{plugin}")


def needs(plugin, extra):
    return pytest.mark.skipif(not has(plugin), reason=f"{plugin} is not installed: pip install -e '.[{extra}]'")


def command(adlight, *words, before=(), limit=900, **environment):
    """Run a training command for real. -> what it printed, after it has ended well or as `code` says."""
    search = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [*before, sys.executable, "-m", "adlight.train", *adlight.quick, *words],
        cwd=adlight.folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": search, **environment},
        capture_output=True,
        text=True,
        timeout=limit,
    )


def well(done):
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def results(sweep):
    with (sweep / "results.csv").open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def check_same(sweep, other):
    """Both sweeps have the same finished jobs, with the same numbers to the digit."""
    one, two = results(sweep), results(other)
    assert one.keys() == two.keys() and one
    for name, row in one.items():
        assert row["status"] == two[name]["status"] == "finished", (row, two[name])
        assert [row[key] for key in NUMBERS] == [two[name][key] for key in NUMBERS]
        assert (sweep / name / "predictions.csv").read_bytes() == (other / name / "predictions.csv").read_bytes()


@needs("hydra_submitit_launcher", "slurm")
@pytest.mark.parametrize(
    "words, tasks, gpus",
    [("trainer=ddp_4gpu", 4, 4), ("trainer=gpu", 1, 1), ("", 1, 1), ("trainer=cpu trainer.devices=2", 2, None)],
)
def test_what_is_asked_of_slurm(words, tasks, gpus):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["hydra/launcher=slurm", *words.split()], return_hydra_config=True)
    GlobalHydra.instance().clear()
    assert (config.hydra.launcher.tasks_per_node, config.hydra.launcher.gpus_per_node) == (tasks, gpus)


@needs("hydra_submitit_launcher", "slurm")
@pytest.mark.parametrize(
    "word, said",
    [
        (
            "trainer=ddp",
            "trainer.devices=auto: hydra/launcher=slurm starts one process per device",
        ),
        ("trainer=slurm", "trainer=slurm is for srun; hydra/launcher=slurm starts the processes itself"),
    ],
)
def test_what_slurm_cannot_do(adlight, word, said):
    outcome = adlight("train", "-m", *adlight.quick, "seed=0", "hydra/launcher=slurm", word)
    assert outcome.code == 2 and outcome.err.startswith(f"error: {said}") and outcome.err.count("\n") == 1


@pytest.fixture(scope="module")
def four_jobs(adlight):
    """The sweep that every launcher must equal."""
    words = ("trainer.max_epochs=1", "seed=0,1", "model.mask_ratio=0.5,0.75", "hydra.sweep.dir=runs/by_basic")
    assert adlight("train", "-m", *adlight.quick, *words).code == 0
    return adlight.folder / "runs" / "by_basic", words[:3]


@pytest.mark.slow
@needs("hydra_joblib_launcher", "joblib")
def test_joblib(adlight, four_jobs):
    sweep, words = four_jobs
    done = command(adlight, "-m", *words, "hydra/launcher=cores", "hydra.sweep.dir=runs/by_joblib")
    out = well(done)
    assert "site-packages" not in done.stderr, "a warning of a library"
    check_same(sweep, adlight.folder / "runs" / "by_joblib")
    assert "Joblib.Parallel(n_jobs=2" in out
    print(out)


@pytest.mark.slow
@needs("hydra_ray_launcher", "ray")
def test_ray(adlight, four_jobs):
    sweep, words = four_jobs
    patient = {"RAY_raylet_start_wait_time_s": "300", "RAY_agent_register_timeout_ms": "300000"}  # on a busy machine
    out = well(command(adlight, "-m", *words, "hydra/launcher=ray_local", "hydra.sweep.dir=runs/by_ray", **patient))
    check_same(sweep, adlight.folder / "runs" / "by_ray")
    print(out)


@pytest.mark.slow
def test_several_devices_in_a_sweep(adlight):
    """Two jobs of two gloo processes each: as two single runs of two processes, to the digit."""
    devices = ("dataset.category=bottle", "trainer.devices=2")
    out = well(command(adlight, "-m", *devices, "seed=0,1", "hydra.sweep.dir=runs/by_two"))
    assert out.count("test results") == 2, "one process of each job reports"
    for seed in (0, 1):
        well(command(adlight, *devices, "trainer.strategy=ddp", f"seed={seed}", f"hydra.run.dir=runs/two_{seed}"))
        job, single = adlight.folder / "runs" / "by_two" / f"seed-{seed}", adlight.folder / "runs" / f"two_{seed}"
        for name in ("predictions.csv", "metrics.csv"):
            assert (job / name).read_bytes() == (single / name).read_bytes()
        assert json.loads((job / "metrics.json").read_text())["epochs"] == 2
        words = json.loads((job / "run.json").read_text())["command"].split()
        assert f"seed={seed}" in words and not [word for word in words if word.startswith("hydra.")]


@pytest.mark.slow
def test_a_process_that_fails_does_not_leave_the_others_waiting(adlight):
    words = ("-m", "seed=0", "trainer.devices=2", "+callbacks.trouble._target_=trouble.Trouble")
    done = command(adlight, *words, "hydra.sweep.dir=runs/one_breaks", ADLIGHT_TEST_TROUBLE="break 1")
    assert done.returncode == 2, done.stderr
    (row,) = results(adlight.folder / "runs" / "one_breaks").values()
    assert row["status"] == "failed" and "process 1: ZeroDivisionError: nothing left to divide by" in row["error"]
    out = well(command(adlight, *words, "hydra.sweep.dir=runs/one_breaks", "resume_sweep=true"))
    assert "epoch 1/2" not in out and "epoch 2/2" in out  # goes on, in two processes again


@pytest.mark.slow
def test_sigterm_reaches_the_command_of_a_job(adlight):
    sweep = adlight.folder / "runs" / "stopped_two"
    words = ("seed=0", "trainer.devices=2", "+callbacks.trouble._target_=trouble.Trouble", f"hydra.sweep.dir={sweep}")
    process = subprocess.Popen(
        [sys.executable, "-m", "adlight.train", "-m", *adlight.quick, *words],
        cwd=adlight.folder,
        env={**os.environ, "PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}
        | {"ADLIGHT_TEST_TROUBLE": "hold"},
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 300
    while not list(sweep.glob("*/checkpoints/last.ckpt")) and time.monotonic() < until:
        time.sleep(0.1)
    process.terminate()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert err.splitlines()[-1].endswith(f"resume_sweep=true hydra.sweep.dir={sweep}")
    (row,) = results(sweep).values()
    assert row["status"] == "unfinished"
    assert subprocess.run(["pgrep", "-f", f"hydra.run.dir=.{sweep}"], stdout=subprocess.DEVNULL).returncode == 1


def study_of(sweep):
    import optuna

    return optuna.load_study(study_name="adlight", storage=f"sqlite:///{sweep}/study.db")


def killed_trial(sweep):
    """Leave a trial in a study as a search does that is killed in it: with parameters, and running for ever."""
    study = study_of(sweep)
    trial = study.ask()
    for name, distribution in study.trials[0].distributions.items():
        trial._suggest(name, distribution)
    return trial


@needs("hydra_optuna_sweeper", "optuna")
@pytest.mark.parametrize("key", ["model.mask_ratoi", "model/dept"])
def test_a_mistyped_setting_of_a_search_leaves_no_sweep_that_could_go_on(adlight, key):
    sweep = adlight.folder / "runs" / "mistyped_search"
    words = ("sweep=search", "hydra.sweeper.params=null", f"{key}=choice(e2d2,e2d4)", f"hydra.sweep.dir={sweep}")
    outcome = adlight("train", *adlight.quick, *words)
    last = outcome.err.splitlines()[-1]  # before it, Optuna tells of its study
    assert outcome.code == 2 and last.startswith("error: unknown setting") and key[6:] in last
    assert not sweep.exists()


@pytest.mark.slow
@needs("hydra_optuna_sweeper", "optuna")
def test_search(adlight):
    words = ("sweep=search", "hydra.sweep.dir=runs/search", "trainer.max_epochs=1", "hydra.sweeper.sampler.seed=0")
    space = (
        "model.network.encoder_width=choice(16,32)",
        "model/depth=choice(e2d2,e2d4)",
        "model.mask_ratio=choice(0.5,0.75)",
    )
    words = [*words, *space, "model.scorer.score=choice(mse,l1)"]
    sweep = adlight.folder / "runs" / "search"
    done = command(adlight, *words, "hydra.sweeper.n_trials=2")
    well(done)
    assert "Warning" not in done.stderr, "of Hydra 1.4, which the extra brings"
    first = results(sweep)
    killed = killed_trial(sweep)
    outcome = adlight("train", *adlight.quick, *words, "hydra.sweeper.n_trials=1", "resume_sweep=true")
    assert outcome.code == 0, outcome.err
    trials = study_of(sweep).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    assert trials[-1].params == killed.params, "what was begun is done first"
    with sqlite3.connect(sweep / "study.db") as study:  # it remembers the trials from before
        values = [value for (value,) in study.execute("SELECT value FROM trial_values ORDER BY trial_id")]
    rows = results(sweep)
    assert len(values) == 3 and set(first) <= set(rows)
    assert set(values) == {float(row["val/auroc"]) for row in rows.values()}
    best = (sweep / "optimization_results.yaml").read_text()
    assert f"best_value: {max(values)}" in best


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A cluster of one node: the environment that its commands need."""
    missing = [name for name in ("slurmctld", "slurmd", "srun", "munged") if shutil.which(name, path=PATH) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(
            f"Slurm is not installed (apt-get install slurmctld slurmd slurm-client munge): {missing}, or no root"
        )
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([CLUSTER, "start", folder], check=True, timeout=120, env={**os.environ, "PATH": PATH})
    yield {"SLURM_CONF": str(folder / "slurm.conf")}
    subprocess.run([CLUSTER, "stop", folder], check=True, timeout=60)


PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


@pytest.mark.slow
def test_srun_starts_the_processes_of_a_run(adlight, slurm):
    words = ("dataset.category=bottle", "trainer=slurm", "trainer.accelerator=cpu")
    srun = ("srun", "--nodes=1", "--ntasks-per-node=2")
    out = well(command(adlight, *words, before=srun, **slurm))
    (line,) = [line for line in out.splitlines() if line.startswith("run folder: ")]  # one for both
    run = Path(line.removeprefix("run folder: "))
    assert run.name.startswith("slurm-")
    words = ("dataset.category=bottle", "trainer.devices=2", "trainer.strategy=ddp", "hydra.run.dir=runs/as_slurm")
    well(command(adlight, *words))
    assert (run / "predictions.csv").read_bytes() == (adlight.folder / "runs/as_slurm/predictions.csv").read_bytes()


@pytest.mark.slow
@needs("hydra_submitit_launcher", "slurm")
def test_slurm_sweeps(adlight, slurm):
    """Two jobs with two tasks each; one is queued again in the middle, as when its time is up, and goes on."""
    sweep = adlight.folder / "runs" / "by_slurm"
    words = ("dataset.category=bottle", "trainer.devices=2", "trainer.strategy=ddp", "seed=0,1")
    launcher = ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", f"hydra.sweep.dir={sweep}")
    out = well(command(adlight, "-m", *words, *launcher, **slurm))
    well(command(adlight, "-m", *words, "hydra.sweep.dir=runs/like_slurm"))
    check_same(adlight.folder / "runs" / "like_slurm", sweep)
    print(out)


@pytest.mark.slow
@needs("hydra_submitit_launcher", "slurm")
def test_a_job_whose_time_is_up_is_queued_again_and_goes_on(adlight, slurm):
    sweep = adlight.folder / "runs" / "requeued"
    trouble = "+callbacks.trouble._target_=trouble.Trouble"
    words = ("-m", "seed=0", trouble, "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1")
    process = subprocess.Popen(
        [sys.executable, "-m", "adlight.train", *adlight.quick, *words, f"hydra.sweep.dir={sweep}"],
        cwd=adlight.folder,
        env={**os.environ, **slurm, "PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}
        | {"ADLIGHT_TEST_TROUBLE": f"hold {sweep / 'release'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until = time.monotonic() + 300
    while not list(sweep.glob("*/checkpoints/last.ckpt")) and time.monotonic() < until and process.poll() is None:
        time.sleep(0.5)
    (sweep / "release").write_text("")
    queue = subprocess.run(["squeue", "-h", "-o", "%A"], env={**os.environ, **slurm}, capture_output=True, text=True)
    # the signal that Slurm sends `signal_delay_s` before the time is up
    subprocess.run(["scancel", "--signal=USR2", queue.stdout.split()[0]], env={**os.environ, **slurm}, check=True)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    (row,) = results(sweep).values()
    logs = "".join(path.read_text() for path in sweep.glob(".submitit/*/*.out"))
    assert row["status"] == "finished" and row["epochs"] == "2"
    assert logs.count("epoch 1/2") <= 1 and logs.count("epoch 2/2") == 1
