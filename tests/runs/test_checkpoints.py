from types import SimpleNamespace

import pytest
import torch

from adlight.runs.checkpoints import BestAndLast


class FakeTrainer(SimpleNamespace):
    """As much of a trainer as the callback sees."""

    def __init__(self, **settings):
        super().__init__(
            state=SimpleNamespace(fn="fit"),
            is_global_zero=True,
            max_epochs=4,
            loggers=[],
            logged_metrics={},
            **settings,
        )

    def save_checkpoint(self, path, weights_only=False):
        if self.fails:
            path.write_text("half a fi")
            raise OSError(28, "No space left on device")
        path.write_text(f"epoch {self.current_epoch}{' weights' if weights_only else ''}")


def keep_in(folder, **settings):
    return BestAndLast(folder / "last.ckpt", folder / "best.ckpt", **settings)


def epochs(callback, scores, start=0, fails=False):
    for epoch, score in enumerate(scores, start):
        trainer = FakeTrainer(current_epoch=epoch, callback_metrics={"val/auroc": torch.tensor(score)}, fails=fails)
        callback.on_validation_end(trainer, None)
        callback.on_train_epoch_end(trainer, None)


def test_of_equal_epochs_the_later_one_stays(tmp_path):
    epochs(keep_in(tmp_path), [0.5, 0.9, 0.9, 0.7])
    assert (tmp_path / "best.ckpt").read_text() == "epoch 2 weights"
    assert (tmp_path / "last.ckpt").read_text() == "epoch 3"
    assert {path.name for path in tmp_path.iterdir()} == {"best.ckpt", "last.ckpt"}


def test_a_resumed_run_knows_the_best(tmp_path):
    first, second = keep_in(tmp_path), keep_in(tmp_path)
    epochs(first, [0.9])
    second.load_state_dict(first.state_dict())
    epochs(second, [0.8], start=1)
    assert (tmp_path / "best.ckpt").read_text() == "epoch 0 weights"
    assert (tmp_path / "last.ckpt").read_text() == "epoch 1"


def test_a_resumed_run_knows_how_long_it_took_before(tmp_path, monkeypatch):
    now, state, earlier = [100.0], {"best": 0.5, "seconds": 0.0}, []
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    for seconds in (7, 5, 1):
        callback = keep_in(tmp_path)
        callback.load_state_dict(state)
        earlier.append(callback.earlier_seconds)
        now[0] += seconds
        state = callback.state_dict()
    assert earlier == [0, 7, 12] and state == {"best": float("-inf"), "seconds": 13.0} | {"best": 0.5}


def test_the_seconds_of_an_earlier_stage_count(tmp_path):
    assert keep_in(tmp_path, seconds=60.0).seconds >= 60


def test_a_failed_write_leaves_the_earlier_file(tmp_path):
    callback = keep_in(tmp_path)
    epochs(callback, [0.5])
    with pytest.raises(OSError, match="No space"):
        epochs(callback, [0.9], start=1, fails=True)
    assert (tmp_path / "best.ckpt").read_text() == "epoch 0 weights"
    assert (tmp_path / "last.ckpt").read_text() == "epoch 0"


def test_every_so_many_epochs_and_at_the_end(tmp_path):
    callback, written = keep_in(tmp_path, every_n_epochs=3), []
    for epoch in range(4):
        epochs(callback, [0.5], start=epoch)
        written.append((tmp_path / "last.ckpt").read_text() if (tmp_path / "last.ckpt").exists() else None)
    assert written == [None, None, "epoch 2", "epoch 3"]


def test_a_stage_without_validation_has_no_best(tmp_path):
    callback = BestAndLast(tmp_path / "pretraining.ckpt")
    trainer = FakeTrainer(current_epoch=3, callback_metrics={}, fails=False)
    callback.on_validation_end(trainer, None)
    callback.on_train_epoch_end(trainer, None)
    assert {path.name for path in tmp_path.iterdir()} == {"pretraining.ckpt"}


def test_a_detector_without_epochs_is_kept_whole(tmp_path):
    trainer = FakeTrainer(current_epoch=0, callback_metrics={"val/auroc": 1.0}, fails=False)
    trainer.state.fn = "validate"
    keep_in(tmp_path).on_validation_end(trainer, None)
    assert {path.name for path in tmp_path.iterdir()} == {"best.ckpt", "last.ckpt"}
