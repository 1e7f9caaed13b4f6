"""What becomes of errors and signals: one line or a traceback, and the exit code."""

import signal
import subprocess
import sys
import traceback

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from processes import check_refused
from pytorch_lightning.utilities.exceptions import SIGTERMException

from adlight.cli.errors import describe, explain, is_interruption
from adlight.cli.words import flags_first, quote_values, value_of
from adlight.types import UserError

HANGING = """
import time
from adlight.cli.main import sigterm_as_keyboard_interrupt
try:
    with sigterm_as_keyboard_interrupt():
        print("working", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    print("cleaning up", flush=True)
    time.sleep(0.5)
    print("clean", flush=True)
"""


def test_a_second_sigterm_lets_the_clean_up_end():
    with subprocess.Popen([sys.executable, "-c", HANGING], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "working\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "cleaning up\n"
        process.send_signal(signal.SIGTERM)  # as `timeout` does, to the process and to its group
        assert process.stdout.readline() == "clean\n" and process.wait(10) == 0


def test_a_bug_inside_a_constructor_keeps_its_traceback(adlight):
    with pytest.raises(TypeError) as caught:
        adlight("train", *adlight.quick, "+callbacks.bug._target_=trouble.Bug", "hydra.run.dir=runs/bug")
    assert explain(caught.value) is None
    assert any(frame.name == "add_one" for frame in traceback.extract_tb(caught.value.__traceback__))


@pytest.mark.parametrize("word", ["checkpoint=null", "~checkpoint", "calibration=null", "~calibration", "~trainer"])
def test_a_node_that_nothing_works_without(adlight, word):
    name = word.strip("~").partition("=")[0]
    check_refused(adlight("train", *adlight.quick, word, "hydra.run.dir=runs/no_node"), name)
    assert not (adlight.folder / "runs" / "no_node" / "run.json").exists()


@pytest.mark.parametrize("word", ["calibration=null", "~calibration"])
def test_nor_an_evaluation(adlight, tiny_run, word):
    check_refused(adlight("evaluate", f"run={tiny_run[0]}", word), "calibration")


def test_the_config_of_an_evaluation_can_be_shown(adlight, tiny_run):
    outcome = adlight("evaluate", f"run={tiny_run[0]}", "--cfg", "job", "model.scorer.reduce=max")
    assert outcome.code == 0 and "reduce: max" in outcome.out, outcome.err


def test_what_lightning_makes_of_signals():
    assert (
        is_interruption(KeyboardInterrupt())
        and is_interruption(SIGTERMException())
        and not is_interruption(SystemExit(-1))
    )
    try:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)
    except SystemExit as error:
        assert is_interruption(error)


def test_one_line_for_any_error():
    assert explain(UserError("too small")) == describe(UserError("too small")) == "too small"
    assert explain(ZeroDivisionError("by zero")) is None
    assert describe(ZeroDivisionError("by zero\nand more")) == "ZeroDivisionError: by zero"
    line = explain(OSError(28, "disk full", "a.ckpt"))
    assert "disk full" in line and "a.ckpt" in line


def test_words():
    assert flags_first(["a=1", "--cfg", "job", "-m", "b=2"]) == ["--cfg", "job", "-m", "a=1", "b=2"]
    words = [
        "run=a b",
        "images=[x]*.png",
        "save='m'",
        "roi=null",
        "runs=[a,b]",
        "title=1",
        "other=a b",
        "runs=it's",
        "images=[b]",
    ]
    quoted = {0: "run='a b'", 1: "images='[x]*.png'", 5: "title='1'", 7: "runs='it\\'s'", 8: "images='[b]'"}
    assert quote_values(words) == [quoted.get(i, word) for i, word in enumerate(words)]


def test_folders_need_no_quotes_of_hydra_s():
    words = ["dataset.root=Größe (1)", "dataset.normal_dir=0", "dataset.roi=it's", "hydra.run.dir=a=b", "images=~/x"]
    quoted = quote_values(words)
    assert [f"{one.key_or_group}={one.value()}" for one in OverridesParser.create().parse_overrides(quoted)] == words
    assert [value_of(quoted, word.partition("=")[0]) for word in words] == [word.partition("=")[2] for word in words]
    words = ["dataset.root=a b", "dataset.root=a,b", "dataset.roi=null", "images='1'", "-m"]
    assert quote_values(words) == words  # readable, a sweep, quoted already, or no folder


@pytest.mark.parametrize("program", ["-m", "adlight"])
def test_ctrl_c_during_the_imports_is_one_line(program):
    code = f"import sys; sys.argv = [{program!r}]; import adlight; raise KeyboardInterrupt"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "stopped.\n")


@pytest.mark.parametrize(
    "words",
    [
        *("evaluate run=", "predict run= images=x", "predict run=x images=''", "report runs=", "train resume="),
        *("train hydra.run.dir=", "train -m seed=1,2 hydra.sweep.dir=", "train ckpt="),
    ],
)
def test_nothing_is_never_the_working_directory(adlight, words):
    outcome = adlight(*words.split())
    key = next(word for word in words.split() if word.endswith(("=", "=''"))).partition("=")[0]
    assert outcome.code == 2 and f"error: {key}=" in outcome.err and "is empty" in outcome.err


def test_a_sweep_of_no_jobs(adlight):
    outcome = adlight("train", "-m", "seed=range(3,3)", "hydra.sweep.dir=runs/no_jobs")
    assert outcome.code == 2 and "seed=range(3,3)" in outcome.err
    assert not (adlight.folder / "runs" / "no_jobs").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        ("train --epochs 5", ["--epochs", "epochs=<value>"]),
        ("predict run=x images=y -x", ["-x"]),
        ("train --config-name predict", ["--config-name"]),
        ("train mae", ["'mae'", "model=retrieval"]),
        ("train seed=1,2", ["seed=1,2", "-m"]),
        ("train resume_sweep=true", ["resume_sweep=true", "-m"]),
        ("train -m seed=range(0,1,0)", ["seed=range(0,1,0)"]),
        ("train -m model=knn,pcaa model.network.k=3", ["'pcaa'", "pca?"]),
        ("train resume=runs/tiny hydra.run.dir=runs/other", ["hydra.run.dir=runs/other"]),
        ("train dataset.seed='${sed}'", ["dataset.seed", "'sed'"]),
        ("train dataset.root='${oc.env:NOWHERE_AT_ALL}'", ["dataset.root", "NOWHERE_AT_ALL"]),
        ("train hydra.output_subdir=x", ["hydra.output_subdir"]),
        ("evaluate run=runs/tiny resume=auto", ["resume=auto", "adlight train"]),
        ("evaluate run=runs/modelless", ["modelless", "model"]),
        ("predict run=runs/modelless images=data", ["modelless", "model"]),
    ],
)
def test_words_that_say_something_else_than_was_meant(adlight, tiny_run, words, said):
    folder = adlight.folder / "runs" / "modelless" / tiny_run[0].joinpath(".hydra").name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    check_refused(adlight(*words.split()), *said)


def test_a_memory_that_is_full_is_one_line():
    torch_says = RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    )
    assert all(
        "dataset.batch_size" in explain(error) for error in (torch_says, MemoryError("Unable to allocate 9 GiB"))
    )


def test_of_a_copy_the_place_is_named_that_is_full():
    assert explain(OSError(28, "disk full", "from.ckpt", None, "to.ckpt")).startswith("to.ckpt: disk full, make room")


@pytest.mark.parametrize("name", ["LOCAL_RANK", "SLURM_PROCID"])
def test_a_process_number_that_is_none_is_one_line(adlight, monkeypatch, name):
    monkeypatch.setenv(name, "x")
    check_refused(adlight("train", "model=pca", "dataset=synthetic"), name)
