"""The same predictions by actors of Ray, and what Ray alone brings: parts that stay, parts that resume."""

import json
import shutil
import signal
import sys

import pytest
from readers import table

from adlight.prediction.batches import predict_batches


@pytest.fixture(scope="module")
def run(adlight):
    words = ("model=pca", "dataset=mvtec", "dataset.root=data", "trainer=cpu", "dataset.image_size=32")
    return adlight.train(
        *words,
        "model.network.components=4",
        "calibration.folds=0",
        "~callbacks.panels",
        "~callbacks.gallery",
        "logger=none",
    )


@pytest.fixture(scope="module")
def images(adlight, tmp_path_factory):
    """Nine of a category, of which the fifth cannot be read."""
    folder = tmp_path_factory.mktemp("images")
    shutil.copytree(adlight.folder / "data" / "bottle" / "test", folder / "bottle")
    (folder / "bottle" / "hole" / "001.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine, for all tests."""
    ray = pytest.importorskip("ray", reason="the extra adlight[ray]")
    pytest.importorskip("pyarrow")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray
    ray.shutdown()


@pytest.fixture
def predict(adlight, run, images, tmp_path):
    """Runs the command; returns how it ended and the folder it wrote."""

    def call(*words, place="ray"):
        words = (f"run={run}", f"images={images}", "device=cpu", f"hydra.run.dir={tmp_path / place}", *words)
        return adlight("predict", *words), tmp_path / place

    return call


def test_a_missing_package_is_one_line(predict, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    outcome, folder = predict("engine=ray")
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and "pip install 'adlight[ray]'" in outcome.err
    assert not list(folder.rglob("*.part"))


def test_sigterm_is_an_interruption_as_the_handler_of_ray_reports_it(predict, monkeypatch):
    def stop(*words):
        yield next(predict_batches(*words))
        raise SystemExit(signal.SIGTERM)

    monkeypatch.setattr("adlight.predict.predict_batches", stop)
    outcome, folder = predict("save=none", "batch_size=2", place="terminated")
    assert outcome.code == 130 and outcome.err.startswith("stopped. 2 predictions") and f"={folder}" in outcome.err


def test_predictions_are_those_without_ray(predict, cluster):
    words = ("save=masks", "on_bad_image=skip", "batch_size=2")
    outcome, plain = predict(*words, place="plain")
    assert outcome.code == 0, outcome.err
    outcome, folder = predict(*words, "engine=ray", "actors=2", "part_size=4")
    assert outcome.code == 0, outcome.err
    names = sorted(path.relative_to(plain) for path in plain.rglob("*") if path.suffix in (".csv", ".png", ".json"))
    assert len(names) == 3 + 8  # tables, and a mask of each image
    for name in [*names, "predictions.jsonl"]:
        assert (folder / name).read_bytes() == (plain / name).read_bytes(), name
    assert json.loads((folder / "regions.json").read_text())["annotations"]

    from pyarrow import parquet

    assert [path.name for path in sorted((folder / "parts").iterdir())] == [f"{i:06}.parquet" for i in range(3)]
    rows = parquet.read_table(folder / "parts").to_pylist()
    assert [row["path"] for row in rows if row["error"]] == [table(folder / "unreadable.csv")[0]["path"]]
    assert [row["score"] for row in rows if not row["error"]] == [
        float(row["score"]) for row in table(folder / "predictions.csv")
    ]


def test_an_unreadable_image_stops_it_and_whole_parts_are_kept(predict, cluster):
    words = ("save=none", "engine=ray", "actors=1", "part_size=3")
    outcome, folder = predict(*words)  # the second part of three holds it
    assert outcome.code == 2 and outcome.err.count("error: ") == 1
    assert "hole/001.png" in outcome.err and f"resume={folder}" in outcome.err
    first, second = (folder / "parts" / f"00000{number}.parquet" for number in range(2))
    assert first.exists() and not second.exists() and not (folder / "predictions.csv").exists()
    before = first.stat().st_mtime_ns
    outcome, _ = predict(*words, "resume=auto", "on_bad_image=skip", "actors=2")
    assert outcome.code == 0, outcome.err
    assert first.stat().st_mtime_ns == before and len(table(folder / "predictions.csv")) == 8
    assert predict("engine=ray", f"resume={folder}")[0].code == 2, "nothing was interrupted"


@pytest.mark.parametrize("word", ["actors=99", "device=cuda:1", "part_size=0"])
def test_what_ray_cannot_do_is_one_line(predict, cluster, word):
    outcome, _ = predict("engine=ray", word)
    assert outcome.code == 2 and word.partition("=")[0] in outcome.err.splitlines()[-1]
