"""The logger groups through the command line."""

import pytest
from PIL import Image
from readers import table


@pytest.fixture
def words(adlight):
    return [*adlight.quick, "trainer.max_epochs=1", "dataset.category=bottle"]


def test_csv_is_the_default(adlight, words):
    assert len(table(adlight.train(*words) / "metrics.csv")) == 1


def test_none(adlight, words):
    run = adlight.train(*words, "logger=none")
    assert not (run / "metrics.csv").exists() and (run / "metrics.json").exists()


def test_tensorboard(adlight, words):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words.remove("~callbacks.panels")
    run = adlight.train(*words, "logger=tensorboard")
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    (row,) = table(run / "metrics.csv")
    (loss,) = events.Scalars("train/loss")
    assert loss.value == pytest.approx(float(row["train/loss"])) and loss.step == int(row["step"])
    assert events.Tags()["images"] == ["panels/bottle"]
    with Image.open(run / "panels" / "bottle.png") as written:
        assert (events.Images("panels/bottle")[0].width, events.Images("panels/bottle")[0].height) == written.size
