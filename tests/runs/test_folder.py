"""Run folders: how they are read, found again and changed."""

import json
import os

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from adlight.runs import config as configs
from adlight.runs import folder as runs
from adlight.types import Record, UserError

WORDS = ["model=mae_small", "dataset=mvtec", "dataset.image_size=64", "run_dir=nowhere"]
CHOICES = OmegaConf.create(
    {"model": "mae_small", "dataset": "mvtec", "trainer": "default", "logger": "csv", "callbacks": "default"}
    | {"model/depth": "e2d4", "pair": "mae_small/mvtec", "experiment": None, "hydra/launcher": "basic"}
)


@pytest.fixture
def composer():
    with initialize_config_dir(str(configs.CONF), version_base="1.3"):
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
    folders = sorted(tmp_path.glob("*"))
    assert runs.find_unfinished(folders, config) == newer
    assert runs.find_unfinished([older], config) == older
    assert runs.find_unfinished(folders, composer("seed=3")) is None
    resumed = composer("seed=1", "resume=auto")
    assert runs.find_unfinished(folders, resumed) == newer  # the same config but for `resume`


def test_values_are_laid_over_a_config(composer):
    config = composer()
    found = configs.changed(config, CHOICES, ["model.scorer.reduce=max", "trainer.devices=2", "threshold=sigma:3"])
    assert (found.model.scorer.reduce, found.trainer.devices, found.threshold) == ("max", 2, "sigma:3")
    assert config.model.scorer.reduce == "mean"  # the original is left alone
    for key in ("model.scorer.reduc=max", "nonsense=1", "trainer.fancy=1"):
        with pytest.raises(OmegaConfBaseException, match="is not in struct"):
            configs.changed(config, CHOICES, [key])


def test_a_group_is_composed_anew(composer):
    found = configs.changed(
        composer(), CHOICES, ["trainer=debug", "trainer.limit_test_batches=1", "callbacks.panels=null"]
    )
    assert (found.trainer.limit_train_batches, found.trainer.limit_test_batches) == (2, 1)
    assert found.callbacks.panels is None
    assert found.model == composer().model


def test_what_a_run_had_set_itself_survives_a_group_switch(composer):
    config = composer("trainer.max_epochs=7", "trainer.accumulate_grad_batches=2")
    found = configs.changed(config, CHOICES, ["trainer=gpu"])
    assert (found.trainer.max_epochs, found.trainer.accumulate_grad_batches) == (7, 2)
    assert (found.trainer.accelerator, found.trainer.precision) == ("gpu", "bf16-mixed")
    both = configs.changed(config, CHOICES, ["trainer.devices=3", "trainer=ddp"])  # in any order, as on a first run
    assert (both.trainer.devices, both.trainer.strategy) == (3, "ddp")


def test_a_data_set_switch_keeps_what_the_network_is_made_for(composer):
    found = configs.changed(composer(), CHOICES, ["dataset=mnist", "dataset.root=elsewhere"])
    assert found.dataset.source._target_.endswith("MNIST") and found.dataset.root == "elsewhere"
    assert (found.dataset.image_size, found.dataset.channels) == (64, 3)
    assert found.model.network.image_size == 64 and found.model.network.patch_size == 16
    with pytest.raises(OmegaConfBaseException, match="is not in struct"):
        configs.changed(composer(), CHOICES, ["dataset=mnist", "dataset.category=bottle"])


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match=r"is no run folder: .*config.yaml is missing"):
        runs.load_config(tmp_path)
    with pytest.raises(UserError, match=r"best.ckpt does not exist .*: none"):
        runs.checkpoint(tmp_path, "best")
    assert not runs.holds_results(tmp_path)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "metrics.json"
    runs.write_json(path, {"auroc": 0.5})
    with pytest.raises(TypeError):
        runs.write_json(path, {"auroc": object()})
    assert json.loads(path.read_text()) == {"auroc": 0.5}
    assert [found.name for found in path.parent.iterdir()] == ["metrics.json"]


def test_a_run_that_goes_on_is_unfinished_again(tmp_path, capsys):
    runs.write_json(tmp_path / "metrics.json", {"auroc": 0.5})
    runs.start(tmp_path, {"seed": 1})
    assert not (tmp_path / "metrics.json").exists()
    assert json.loads((tmp_path / "metrics.previous.json").read_text()) == {"auroc": 0.5}
    assert capsys.readouterr().out == f"run folder: {tmp_path}\n"


def test_predictions_keep_every_digit(tmp_path):
    from adlight.detection.module import TestedImage
    from adlight.types import Prediction

    score = torch.tensor(1 / 3).item()
    found = Prediction(score, 0.5, 0.75, "all categories", 0.25, [(0, 1, 2, 3), (4, 5, 6, 7)])
    rows = [TestedImage(1, 0, 1, found), TestedImage(0, 0, 0, Prediction(0.1, 0.1, 0.2, "bottle", 0.0, []))]
    records = [Record("a, b.png", "bottle"), Record("c.png", "screw", "hole", 1)]
    runs.write_predictions(tmp_path / "p.csv", records, rows)
    assert (tmp_path / "p.csv").read_text().splitlines() == [
        "path,category,defect,label,score,threshold,anomalous,threshold_source,pixel_threshold,area,boxes",
        f'c.png,screw,hole,1,{score!r},0.5,0,all categories,0.75,0.25,"0,1,2,3 4,5,6,7"',
        '"a, b.png",bottle,good,0,0.1,0.1,0,bottle,0.2,0.0,',  # a score at the threshold is normal
    ]


def test_weights_of_another_architecture(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": nn.Linear(2, 3).state_dict()}, path)
    layer = nn.Linear(2, 3)
    runs.load_weights(layer, path)
    with pytest.raises(UserError, match=r"architecture: weight has shape \(3, 2\) in it and has shape \(3, 4\)"):
        runs.load_weights(nn.Linear(4, 3), path)
    with pytest.raises(UserError, match=r"architecture: bias has shape .* in it and is missing"):
        runs.load_weights(nn.Linear(2, 3, bias=False), path)
    torch.save({"weights": 1}, path)
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        runs.load_weights(layer, path)


def test_runs_are_found_in_the_order_of_their_numbers(tmp_path):
    names = ["e12d8_ratio-0.5", "e2d2_ratio-0.75", "e2d2_ratio-0.8", "e2d2_ratio-0.9", "e10d2_ratio-0.5"]
    for name in names:
        (tmp_path / name / ".hydra").mkdir(parents=True)
        (tmp_path / name / ".hydra" / "config.yaml").write_text("{}")
    found = [run.name for run in runs.find_runs([str(tmp_path)])]
    assert found == [*names[1:4], names[4], names[0]]
