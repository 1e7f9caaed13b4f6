"""Run folders: how they are read, found again and changed."""

import json
import os
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from adlight.runs.config import CONF, instantiate_node
from adlight.runs.exported import name_of
from adlight.runs.files import write_atomically
from adlight.runs.find import find_runs, find_unfinished, natural_key
from adlight.runs.folder import RunFolder
from adlight.runs.overrides import apply_overrides
from adlight.runs.tables import PREDICTIONS, prediction_rows, to_csv
from adlight.runs.weights import load_weights
from adlight.types import Record, UserError

WORDS = ["model=mae_small", "dataset=mvtec", "dataset.image_size=64", "run_dir=nowhere"]
CHOICES = OmegaConf.create(
    {"model": "mae_small", "dataset": "mvtec", "trainer": "default", "logger": "csv", "callbacks": "default"}
    | {"model/depth": "e2d4", "pair": "mae_small/mvtec", "experiment": None, "hydra/launcher": "basic"}
)


@pytest.fixture
def composer():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *words: compose("train", [*WORDS, *words])
    GlobalHydra.instance().clear()


def write_run(folder, config, age=0, finished=False):
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    last = folder / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.write_text("")
    os.utime(last, (1e9 - age, 1e9 - age))
    if finished:
        (folder / "metrics.json").write_text("{}")
    return folder


def test_the_newest_unfinished_run_with_the_config_is_found(tmp_path, composer):
    config = composer("seed=1")
    older, newer = write_run(tmp_path / "z", config, age=50), write_run(tmp_path / "a", config, age=10)
    write_run(tmp_path / "finished", config, finished=True)
    write_run(tmp_path / "other", composer("seed=2"))
    nothing = write_run(tmp_path / "no checkpoint", config)
    (nothing / "checkpoints" / "last.ckpt").unlink()
    (tmp_path / "no run").mkdir()
    folders = [RunFolder(path) for path in sorted(tmp_path.glob("*"))]
    assert find_unfinished(folders, config).path == newer
    assert find_unfinished([RunFolder(older)], config).path == older
    assert find_unfinished(folders, composer("seed=3")) is None
    resumed = composer("seed=1", "resume=auto")
    assert find_unfinished(folders, resumed).path == newer  # the same config but for `resume`


def test_values_are_laid_over_a_config(composer):
    config = composer()
    found = apply_overrides(
        config, CHOICES, ["model.scorer.reduce=max", "trainer.devices=2", "calibration.image=sigma:3"]
    )
    assert (found.model.scorer.reduce, found.trainer.devices, found.calibration.image) == ("max", 2, "sigma:3")
    assert config.model.scorer.reduce == "topk"  # the original is left alone
    for key in ("model.scorer.reduc=max", "nonsense=1", "trainer.fancy=1"):
        with pytest.raises(OmegaConfBaseException, match=key.partition("=")[0].rpartition(".")[2]):
            apply_overrides(config, CHOICES, [key])


def test_a_group_is_composed_anew(composer):
    found = apply_overrides(
        composer(), CHOICES, ["trainer=debug", "trainer.limit_test_batches=1", "callbacks.panels=null"]
    )
    assert (found.trainer.limit_train_batches, found.trainer.limit_test_batches) == (2, 1)
    assert found.callbacks.panels is None
    assert found.model == composer().model


def test_what_a_run_had_set_itself_survives_a_group_switch(composer):
    config = composer("trainer.max_epochs=7", "trainer.accumulate_grad_batches=2")
    found = apply_overrides(config, CHOICES, ["trainer=gpu"])
    assert (found.trainer.max_epochs, found.trainer.accumulate_grad_batches) == (7, 2)
    assert (found.trainer.accelerator, found.trainer.precision) == ("gpu", "bf16-mixed")
    both = apply_overrides(config, CHOICES, ["trainer.devices=3", "trainer=ddp"])  # in any order, as on a first run
    assert (both.trainer.devices, both.trainer.strategy) == (3, "ddp")


def test_a_data_set_switch_keeps_what_the_network_is_made_for(composer):
    found = apply_overrides(composer(), CHOICES, ["dataset=mnist", "dataset.root=elsewhere"])
    assert found.dataset.source._target_.endswith("MNIST") and found.dataset.root == "elsewhere"
    assert (found.dataset.image_size, found.dataset.channels) == (64, 3)
    assert found.model.tokenizer.image_size == 64 and found.model.tokenizer.patch_size == 16
    with pytest.raises(OmegaConfBaseException, match="category"):
        apply_overrides(composer(), CHOICES, ["dataset=mnist", "dataset.category=bottle"])


def test_a_folder_without_a_run(tmp_path):
    run = RunFolder(tmp_path)
    with pytest.raises(UserError, match=r"config.yaml"):
        run.config()
    with pytest.raises(UserError, match=r"best.ckpt .*: none"):
        run.checkpoint("best")
    assert not run.is_run and not run.has_results and not run.is_finished and not run.can_resume
    assert run.read_results() is run.predictions() is run.job() is run.failure() is None and not run.panel_paths()


@pytest.mark.parametrize("name, method", [
    (".hydra/config.yaml", "config"), ("metrics.json", "read_results"), ("predictions.csv", "predictions")
])  # fmt: skip
def test_damaged_files_are_named(tmp_path, name, method):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "metrics.json").write_text("{}")  # marks a finished run
    for content in ("a: [1", "[1, 2]"):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=name):
            getattr(RunFolder(tmp_path), method)()


@pytest.mark.parametrize("content", [
    "true", '{"categories": {"a": true}}', '{"categories": {"a": {}}, "defects": true}',
    '{"categories": {"a": {}}, "defects": {"a": {"hole": "x"}}}', '{"categories": {"a": {}}, "pooled": 3}',
    '{"categories": {"a": {"auroc": true}}}', '{"categories": {"a": {"auroc": 0.5}}, "auroc": "high"}',
    '{"categories": {"a": {}}, "seconds": Infinity}',
])  # fmt: skip
def test_results_with_other_things_in_them_are_damaged(tmp_path, content):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(UserError, match=r"metrics\.json"):
        RunFolder(tmp_path).read_results()


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "results.csv"
    write_atomically(path, "a\r\n")
    assert path.read_bytes() == b"a\r\n"

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"b")
    assert path.read_bytes() == b"a\r\n" and [found.name for found in path.parent.iterdir()] == ["results.csv"]


def test_a_run_that_goes_on_is_unfinished_again(tmp_path):
    (tmp_path / "metrics.json").write_text('{"auroc": 0.5}')
    RunFolder(tmp_path).begin({"seed": 1})
    assert not (tmp_path / "metrics.json").exists()
    assert json.loads((tmp_path / "metrics.previous.json").read_text()) == {"auroc": 0.5}
    assert json.loads((tmp_path / "run.json").read_text()) == {"seed": 1}


def test_a_job_that_begins_again_has_not_failed(tmp_path):
    run = RunFolder(tmp_path)
    run.write_job(3, ["seed=1"])
    run.write_failure("ValueError: too small")
    assert run.job() == {"job": 3, "overrides": ["seed=1"]} and run.failure() == "ValueError: too small"
    (tmp_path / "error.txt").write_text("Traceback ...\n\nValueError: last line\n")
    assert run.failure() == "ValueError: last line"
    run.write_job(3, [])
    assert run.failure() is None


def test_wandb_keeps_its_identity(tmp_path):
    run = RunFolder(tmp_path)
    assert run.wandb_identity({"id": "a"}) == run.wandb_identity({"id": "b"}) == {"id": "a"}


def test_predictions_keep_every_digit(tmp_path):
    from adlight.detection.gathering import TestedImage
    from adlight.types import Prediction

    score = torch.tensor(1 / 3).item()
    found = Prediction(score, 0.5, 0.75, "all categories", 0.25, [(0, 1, 2, 3), (4, 5, 6, 7)])
    rows = [TestedImage(1, 0, 1, found), TestedImage(0, 0, 0, Prediction(0.1, 0.1, 0.2, "007", 0.0, []))]
    records = [Record("007", "007"), Record("c.png", "screw", "hole, NA", 1)]
    text = to_csv(PREDICTIONS, prediction_rows(records, rows))
    assert text.splitlines()[1:] == [
        f'c.png,screw,"hole, NA",1,{score!r},0.5,0,all categories,0.75,0.25,"0,1,2,3 4,5,6,7"',
        "007,007,good,0,0.1,0.1,0,007,0.2,0.0,",  # a score at the threshold is normal
    ]
    (tmp_path / "predictions.csv").write_text(text)
    (tmp_path / "metrics.json").write_text("{}")  # marks a finished run
    table = RunFolder(tmp_path).predictions()
    assert list(table.columns) == list(PREDICTIONS)
    assert list(table["category"]) == ["screw", "007"] and list(table["defect"]) == ["hole, NA", "good"]
    assert list(table["score"]) == [score, 0.1] and list(table["boxes"]) == [found.boxes, []]
    assert list(table["anomalous"]) == [False, False] and list(table["area"]) == [0.25, 0.0]


def test_weights_of_another_architecture(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": nn.Linear(2, 3).state_dict()}, path)
    layer = nn.Linear(2, 3)
    load_weights(layer, path)
    with pytest.raises(UserError, match=r"architecture: weight .*\(3, 2\) .*\(3, 4\)"):
        load_weights(nn.Linear(4, 3), path)
    with pytest.raises(UserError, match=r"architecture: bias .*\(3,\) in it and is missing"):
        load_weights(nn.Linear(2, 3, bias=False), path)
    load_weights(nn.Linear(4, 3), path, ("bias",))
    torch.save({"weights": 1}, path)
    with pytest.raises(UserError, match="KeyError"):
        load_weights(layer, path)


def test_natural_order():
    names = ["ratio-0.75", "ratio-0.8", "seed-9", "seed-10"]
    assert [path.name for path in sorted(map(Path, reversed(names)), key=natural_key)] == names


def test_runs_are_found_at_any_depth_but_not_in_runs(tmp_path, composer):
    for name in ("a/10", "a/9", "a/9/evaluations/1", ".trash/b"):
        write_run(tmp_path / name, composer())
    found = find_runs([str(tmp_path), str(tmp_path / "a" / "*")])
    assert [run.path.relative_to(tmp_path).as_posix() for run in found] == ["a/9", "a/10"]
    with pytest.raises(UserError, match="nowhere"):
        find_runs([str(tmp_path / "nowhere*")])


def test_links_to_runs_are_followed_once(tmp_path, composer):
    kept, elsewhere = tmp_path / "runs" / "z", tmp_path / "elsewhere"
    for folder in (kept, elsewhere / "b"):
        write_run(folder, composer())
    (tmp_path / "runs" / "best").mkdir()
    links = {"a": kept, "best/1": kept, "c": elsewhere, "around": tmp_path / "runs", "broken": tmp_path / "gone"}
    for name, target in links.items():
        (tmp_path / "runs" / name).symlink_to(target)
    found = [str(run.path.relative_to(tmp_path / "runs")) for run in find_runs([str(tmp_path / "runs")])]
    assert found == ["c/b", "z"]


def test_what_cannot_be_read_is_not_resumed(tmp_path, composer, capsys):
    config = composer()
    damaged, mine = (RunFolder(write_run(tmp_path / name, config)) for name in ("damaged", "mine"))
    damaged.config_path.write_text("a: [1")
    assert find_unfinished([damaged, mine], config) is mine
    assert str(damaged) in capsys.readouterr().out


def test_nodes_take_no_unknown_arguments(composer):
    node = composer().trainer
    assert instantiate_node(node, logger=False, enable_progress_bar=False).max_epochs == node.max_epochs
    for node, said in (
        ({"_target_": "torch.optim.SGD", "_partial_": True, "lrr": 1}, "'lrr'.*did you mean lr"),
        ({"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "torch.nn.ReLU", "inplce": True}]}, "inplace"),
    ):
        with pytest.raises(UserError, match=said):
            instantiate_node(OmegaConf.create(node))


def test_a_detector_is_named_with_the_run_that_it_comes_from(tmp_path):
    run, evaluation = tmp_path / "runs" / "parts", tmp_path / "runs" / "parts" / "evaluations" / "20261130-1"
    graph = evaluation / "exports" / "20261130-2" / "detector.onnx"
    for folder in (run, evaluation):
        write_atomically(RunFolder(folder).config_path, "seed: 0")
    names = [name_of(place) for place in (run, evaluation, graph, tmp_path / "copy" / "detector.onnx")]
    assert names == ["parts", "parts/evaluations/20261130-1", f"{names[1]}/exports/20261130-2", "copy"]


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "detector.onnx").touch()
    with pytest.raises(UserError, match="is a file"):
        RunFolder(tmp_path / "detector.onnx").read_config()
