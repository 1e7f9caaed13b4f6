"""Run folders of strangers: nothing in a saved config runs, or is written, that is not a detector's."""

import os
import shutil
from itertools import pairwise

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from processes import check_refused

from adlight.detector import Detector
from adlight.runs.config import CONF
from adlight.runs.folder import RunFolder
from adlight.runs.trust import check_config, check_places, is_trusted
from adlight.types import UserError

MARK = "/tmp/adlight-was-here"  # replaced by a file of the test
HOSTILE = {
    "pickle": {"_target_": "numpy.load", "file": MARK, "allow_pickle": True},
    "torch": {"_target_": "torch.load", "f": MARK, "weights_only": False},
    "copy": {"_target_": "shutil.copyfile", "src": __file__, "dst": MARK},
    "shell": {"_target_": "os.system", "command": f"touch {MARK}"},
    "process": {"_target_": "subprocess.run", "args": ["touch", MARK]},
    "eval": {"_target_": "builtins.eval", "_args_": [f"open('{MARK}', 'w')"]},
    "posix": {"_target_": "posix.system", "_args_": [f"touch {MARK}"]},
    "re-exported by cli": {"_target_": "adlight.cli.job.subprocess.run", "args": ["touch", MARK]},
    "re-exported by runs": {"_target_": "adlight.runs.files.os.system", "command": f"touch {MARK}"},
    "re-exported by a room": {"_target_": "adlight.data.download.os.system", "command": f"touch {MARK}"},
    "a function of ours": {"_target_": "adlight.runs.files.write_atomically", "path": MARK, "content": "x"},
    "no such class": {"_target_": "adlight.data.images.Nothing"},
    "a method of ours": {"_target_": "adlight.runs.folder.RunFolder.write_failure", "self": MARK, "line": "x"},
    "a class that a room imports": {"_target_": "adlight.data.augmentation.Tensor"},
    "beside an optimizer": {"_target_": "torch.optim.adam.torch.hub.download_url_to_file", "url": "x", "dst": MARK},
    "in Lightning": {"_target_": "pytorch_lightning.loggers.csv_logs.os.system", "command": f"touch {MARK}"},
    "a function of Lightning": {"_target_": "pytorch_lightning.seed_everything", "seed": 1},
    "Hydra's own": {"_target_": "hydra.utils.instantiate", "config": {"_target_": "os.system"}},
    "Hydra's inner": {"_target_": "hydra._internal.instantiate._instantiate2._call_target"},
    "partial": {"_target_": "os.system", "_partial_": True, "command": f"touch {MARK}"},
    "in arguments": {"_target_": "torch.optim.Adam", "_args_": [{"_target_": "os.system", "command": f"touch {MARK}"}]},
    "in a list of lists": [[{"deep": [{"_target_": "os.system", "command": f"touch {MARK}"}]}]],
    "no text": {"_target_": {"_target_": "os.system"}},
    "a number": {"_target_": 3},
    "interpolated": {"_target_": "${evil}"},
    "made by a resolver": "${oc.create:{_target_:os.system,command:ls}}",
    "decoded": "${oc.decode:'{_target_: os.system, command: ls}'}",
    "a default that is decoded": "${oc.decode:${oc.env:NO_SUCH,'{_target_: os.system}'}}",
    "a default that is a node": "${oc.select:nothing,{_target_:os.system,command:ls}}",
    "a resolver's name": "${${evil}:x}",
    "escaped": "\\${oc.create:{_target_:os.system,command:ls}}",
    "put together": "$",
    "a logger in a model": {"_target_": "adlight.loggers.csv.CSVLogger", "path": MARK},
}


@pytest.fixture
def stranger(tiny_run, tmp_path):
    """Copies the tiny run and changes its config. -> a function of node, value -> run folder."""

    def change(key, value, name="stranger"):
        run = tmp_path / name
        shutil.copytree(tiny_run[0], run, ignore=shutil.ignore_patterns("evaluations"))
        text = (run / ".hydra" / "config.yaml").read_text()
        config = OmegaConf.create(text)
        plain = OmegaConf.to_yaml(OmegaConf.create({"value": value})).replace(MARK, str(tmp_path / "mark"))
        OmegaConf.update(config, "evil", "os.system", force_add=True)
        OmegaConf.update(config, key, OmegaConf.create(plain)._get_node("value"), force_add=True, merge=False)
        OmegaConf.save(config, run / ".hydra" / "config.yaml")
        return run

    return change


@pytest.mark.parametrize("node", ["model.scorer", "callbacks.mine", "dataset.augmentation", "elsewhere"])
@pytest.mark.parametrize("what", HOSTILE.values(), ids=HOSTILE.keys())
def test_nothing_of_a_stranger_s_config_is_called(stranger, tmp_path, what, node):
    run = stranger(node, what)
    if what == HOSTILE["a logger in a model"] and node.startswith("callbacks"):
        return  # there it has a place, and `check_places` looks where it writes
    with pytest.raises(UserError) as error:
        RunFolder(run).config()
    assert f"{run}/.hydra/config.yaml" in str(error.value) and node in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["shell", "re-exported by cli", "a function of ours", "pickle", "copy"])
def test_no_entry_point_runs_it(adlight, stranger, tmp_path, name):
    run = stranger("model.scorer", HOSTILE[name])
    image = adlight.folder / "data" / "bottle" / "test" / "good" / "000.png"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for words in (
        ("evaluate", f"run={run}"),
        ("evaluate", f"run={run}", "model.scorer=null"),
        ("predict", f"run={run}", f"images={image}", "save=none"),
        ("train", f"resume={run}", "trainer.max_epochs=3"),
    ):
        check_refused(adlight(*words), HOSTILE[name]["_target_"], f"{run}/.hydra/config.yaml")
    with pytest.raises(UserError, match=r"config\.yaml"):
        Detector.load(run, device="cpu")
    outcome = adlight("report", f"runs={run}", f"out={tmp_path}/report")
    assert outcome.code == 0, outcome.err  # it calls nothing, and shows what is there
    assert not (tmp_path / "mark").exists()
    assert {path: path.read_bytes() for path in before if path.suffix != ".log"} == {
        path: content for path, content in before.items() if path.suffix != ".log"
    }


@pytest.fixture
def composer():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *words: compose("train", list(words))
    GlobalHydra.instance().clear()


CHOICES = [
    *(f"model={path.stem}" for path in sorted((CONF / "model").glob("*.yaml"))),
    *(f"dataset={path.stem}" for path in sorted((CONF / "dataset").glob("[a-z]*.yaml"))),
    *(f"trainer={path.stem}" for path in sorted((CONF / "trainer").glob("*.yaml"))),
    *(f"logger={path.stem}" for path in sorted((CONF / "logger").glob("*.yaml"))),
    *(f"model=gan model/gan/{path.parent.name}={path.stem}" for path in sorted((CONF / "model/gan").glob("*/*.yaml"))),
]


@pytest.mark.parametrize("words", CHOICES)
def test_every_config_of_ours_is_trusted(composer, tmp_path, words):
    config = composer(*words.split())
    check_config(config, tmp_path)
    check_places(config, tmp_path)


def test_packages_that_the_user_names_are_trusted(monkeypatch):
    monkeypatch.delenv("ADLIGHT_TRUST", raising=False)
    assert not is_trusted("trouble.Trouble") and not is_trusted("gan.tiny.CtrlC")
    monkeypatch.setenv("ADLIGHT_TRUST", "trouble, gan")
    assert is_trusted("trouble.Trouble") and is_trusted("gan.tiny.CtrlC")
    for target in ("trouble.os.system", "trouble.pl.Trainer", "troublesome.Trouble", "trouble", "trouble.Nothing"):
        assert not is_trusted(target), target


@pytest.mark.parametrize("target", [
    *("torch.optim.AdamW", "torch.optim.lr_scheduler.StepLR", "pytorch_lightning.Trainer"),
    *("pytorch_lightning.callbacks.EarlyStopping", "pytorch_lightning.strategies.DDPStrategy"),
    "pytorch_lightning.profilers.SimpleProfiler",
])  # fmt: skip
def test_libraries(target):
    assert is_trusted(target)


@pytest.mark.parametrize("key, value", [
    ("logger.csv.path", "{0}/x.csv"), ("callbacks.panels.folder", "{0}"), ("logger.csv.path", "x.csv"),
    ("callbacks.panels.folder", "${{run_dir}}/../../x"), ("trainer.default_root_dir", "${{evil_place}}"),
    ("callbacks.panels.folder", "~/x"), ("callbacks.mine", {"_target_": "adlight.loggers.csv.CSVLogger", "path": "x"}),
])  # fmt: skip
def test_a_stranger_does_not_choose_where_to_write(adlight, stranger, tmp_path, key, value):
    run = stranger(key, value.format(tmp_path / "outside") if isinstance(value, str) else value)
    config = OmegaConf.load(run / ".hydra" / "config.yaml")
    config.evil_place = str(tmp_path / "outside")
    OmegaConf.save(config, run / ".hydra" / "config.yaml")
    outcome = adlight("train", f"resume={run}", "trainer.max_epochs=3")
    assert outcome.code == 2 and key in outcome.err and f"{run}/.hydra/config.yaml" in outcome.err, outcome.err
    assert not (tmp_path / "outside").exists() and not (adlight.folder / "x.csv").exists()
    if key.startswith("callbacks.panels"):
        again = adlight("evaluate", f"run={run}", f"callbacks.panels.folder={tmp_path}/asked")
        assert again.code == 0 and (tmp_path / "asked" / "bottle.png").exists(), again.err


def test_a_stranger_s_run_dir_is_ignored(adlight, stranger, tmp_path):
    run = stranger("run_dir", str(tmp_path / "outside"))
    assert adlight("evaluate", f"run={run}", "~callbacks.panels").code == 0
    outcome = adlight("train", f"resume={run}", "trainer.max_epochs=3")
    assert outcome.code == 0 and f"run folder: {run}" in outcome.out, outcome.err
    assert not (tmp_path / "outside").exists()
    assert len(list((run / "evaluations").iterdir())) == 1


def test_choices_of_groups_lead_to_no_file_of_a_stranger(adlight, stranger):
    run = stranger("seed", 0)
    path = run / ".hydra" / "hydra.yaml"
    path.write_text(path.read_text().replace("model: mae_small", f"model: {os.path.relpath(run, CONF / 'model')}/evil"))
    torch.save({}, run / "evil.yaml")
    check_refused(adlight("evaluate", f"run={run}", "trainer=cpu"), str(path))


def test_values_that_stand_for_others_are_refused(tmp_path):
    """Each line of such a config is ten times the one before: nine of them are more than a memory holds."""
    lines = ["a: &a [x]", *(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in pairwise("abcdefghijkl"))]
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"config\.yaml"):
        RunFolder(tmp_path).read_config()
