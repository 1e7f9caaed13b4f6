"""What the base of the detectors does: collect, calibrate, test; and the moving average of weights."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from test_hostile import SIZE, Grey, Made, Shown
from torch import nn

from adlight.data.datamodule import AnomalyDataModule
from adlight.detection.gathering import ScoredImage, gather_rows
from adlight.detection.optimization import EMA
from adlight.metrics.results import mean_auroc
from adlight.metrics.thresholds import Calibration
from adlight.runs.checkpoints import BestAndLast
from adlight.types import UserError


class Trained(Grey):
    """Has something to train."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def training_step(self, batch, batch_idx):
        return self.weight.square().sum()

    def configure_optimizers(self):
        groups = [{"params": [self.weight], "lr": 0.5}]
        optimizer = torch.optim.SGD(groups, lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)]


def fit(folder, module, **settings):
    """Train on grey images, four held out; validation has one image per batch, each normal before its copy."""
    shown = [Shown(i % 2, 20 + i) for i in range(4)]
    sizes = dict(image_size=SIZE, channels=1, batch_size=6, eval_batch_size=1, val_fraction=0.4)
    data = AnomalyDataModule(lambda: Made(shown), **sizes)
    trainer = pl.Trainer(
        **dict(max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, num_sanity_val_steps=0)
        | settings,
        enable_model_summary=False,
        callbacks=[BestAndLast(Path(folder) / "last.ckpt", Path(folder) / "best.ckpt")],
    )
    trainer.fit(module, data)
    return trainer


def test_a_validation_without_pseudo_anomalies_calibrates_and_says_what_is_missing(tmp_path, capsys):
    module = Trained()
    trainer = fit(tmp_path, module, limit_val_batches=1)
    assert {row.label for row in module.validation_scores} == {0} and module.calibration.pooled.num_normals == 1
    assert "val/auroc" not in trainer.callback_metrics and "val/score_normal" in trainer.callback_metrics
    said = capsys.readouterr().out
    assert "val/auroc" in said and "limit_val_batches" in said
    assert (tmp_path / "best.ckpt").is_file()  # the latest is as good as any


def test_a_whole_validation_has_both(tmp_path, capsys):
    module = Trained()
    trainer = fit(tmp_path, module)
    assert {row.label for row in module.validation_scores} == {0, 1} and "val/auroc" in trainer.callback_metrics
    assert "val/auroc" not in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_a_validation_without_normals_needs_thresholds_that_are_numbers(tmp_path, monkeypatch):
    class OnlyAnomalies(Trained):
        def validation_step(self, batch, batch_idx):
            return super().validation_step({**batch, "label": torch.ones_like(batch["label"])}, batch_idx)

    with pytest.raises(UserError, match="limit_val_batches"):
        fit(tmp_path, OnlyAnomalies())
    module = OnlyAnomalies()
    module.calibration = Calibration(0.5, 0.25)
    trainer = fit(tmp_path, module)
    assert module.calibration.of("a")[:2] == (0.5, 0.25) and "val/score_normal" not in trainer.callback_metrics


def test_learning_rates_are_those_of_the_optimizer_and_its_schedule(tmp_path):
    trainer = fit(tmp_path, Trained(), max_epochs=2)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.5 * 0.1**2)


def test_mean_auroc_is_over_the_categories_with_both_labels():
    score = torch.tensor([0.0, 1.0, 102.0, 101.0, 500.0])
    label, category = torch.tensor([0, 1, 0, 1, 0]), torch.tensor([0, 0, 1, 1, 2])
    assert mean_auroc(score, label, category) == 0.5
    assert mean_auroc(score, torch.zeros(5), category) is None


def test_rows_come_in_the_order_of_the_split_each_once():
    rows = [ScoredImage(index, 0, 0, float(index), 0.0) for index in (3, 1, 2, 1)]
    assert [row.index for row in gather_rows(rows)] == [1, 2, 3]


def test_the_data_module_is_the_trainers():
    module, data = Grey(), SimpleNamespace(categories=["a"])
    trainer = SimpleNamespace(datamodule=data)
    module.trainer = trainer
    assert module.datamodule is data and module.pretraining is None


@pytest.mark.parametrize("decay", [0.0, 1.0, 1.5, float("nan")])
def test_an_impossible_decay_is_refused(decay):
    with pytest.raises(ValueError, match=rf"decay.*{decay}"):
        EMA(nn.Linear(1, 1), decay)


def test_the_first_update_copies_the_others_average_also_after_a_restart():
    network, other = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    ema = EMA(network, 0.75)
    nn.init.ones_(network.weight)
    ema.update(network)
    restarted = EMA(other, 0.75)
    restarted.load_state_dict(ema.state_dict())
    nn.init.constant_(network.weight, 5.0)
    for one in (ema, restarted):
        one.update(network)
        assert one.network.weight.tolist() == [[2.0, 2.0]] and one.num_updates == 2
        assert not one.network.weight.requires_grad
