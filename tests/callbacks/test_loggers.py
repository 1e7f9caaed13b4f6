"""The logger groups through the command line."""

import csv

import pytest


@pytest.fixture
def words(adlight):
    return [*adlight.quick, "trainer.max_epochs=1", "dataset.category=bottle"]


def rows(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_is_the_default(adlight, words):
    assert len(rows(adlight.train(*words))) == 1


def test_none(adlight, words):
    run = adlight.train(*words, "logger=none")
    assert not (run / "metrics.csv").exists() and (run / "metrics.json").exists()


def test_tensorboard(adlight, words):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = adlight.train(*words, "logger=tensorboard")
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    (row,) = rows(run)
    (loss,) = events.Scalars("train/loss")
    assert loss.value == pytest.approx(float(row["train/loss"])) and loss.step == int(row["step"])


def test_wandb_without_a_key_stays_offline(adlight, words, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    try:
        run = adlight.train(*words, "logger=wandb")
    finally:
        import wandb

        wandb.finish()
        wandb.teardown()
    (offline,) = (run / "wandb").glob("offline-run-*")
    assert list(offline.glob("run-*.wandb"))
    assert len(rows(run)) == 1
