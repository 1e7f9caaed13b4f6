"""The bar and the lines that stand for it count the same epochs, from 1."""

from types import SimpleNamespace

import pytest

from adlight.callbacks.progress import LoggedProgress, QuietProgress, progress_bar
from adlight.runs.log import copy_output


def trainer(epoch, last=20):
    return SimpleNamespace(current_epoch=epoch, max_epochs=last, progress_bar_metrics={"train/loss": 0.25})


@pytest.mark.parametrize("is_terminal, kind", [(True, LoggedProgress), (False, QuietProgress)])
def test_which_is_chosen(monkeypatch, is_terminal, kind):
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)
    assert type(progress_bar()) is kind


def test_lines_are_few_and_count_from_1(capsys, tmp_path):
    quiet, bar = QuietProgress(), LoggedProgress()
    bar._trainer = trainer(2)
    with copy_output(tmp_path / "train.log"):
        for epoch in range(20):
            quiet.on_train_epoch_end(trainer(epoch), None)
        printed = capsys.readouterr().out.splitlines()
    assert printed == [f"epoch {n}/20 train/loss 0.2500" for n in range(2, 21, 2)] or printed[0].startswith(
        "epoch 1/20"
    )
    assert (tmp_path / "train.log").read_text().splitlines() == printed
    assert bar._get_train_description(2).strip() == "epoch 3/20"
    quiet.disable()
    quiet.on_train_epoch_end(trainer(19), None)
    assert capsys.readouterr().out == ""
