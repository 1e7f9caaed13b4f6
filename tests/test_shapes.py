"""Images that are no squares: the whole path from training to boxes in pixels of the originals."""

import functools

import numpy as np
import pytest
from makers import fake_mvtec
from PIL import Image
from readers import content, table

from adlight.detector import Detector

HEIGHT, WIDTH = 32, 64  # of the frame
ORIGINAL = 100, 200
ANY = [
    *("dataset=mvtec", "dataset.root=wide", "trainer=cpu", "logger=none", "dataset.batch_size=4"),
    *(f"dataset.image_size=[{HEIGHT},{WIDTH}]", "trainer.max_epochs=1", "calibration.pixel=quantile:0.9"),
]
BACKBONE = [
    *("model.backbone.name=resnet18", "model.backbone.layers=[layer1,layer2]", "model.backbone.weights=random"),
    *("model.cache=features", "model.clusters=2", "model.backbone.min_size=1"),
]
MODELS = {
    "mae_small": [f"model.network.{part}_{key}" for part in ("encoder", "decoder") for key in ("width=32", "heads=2")],
    "pca": ["model.network.components=3"],
    "knn": [],
    "patchcore": BACKBONE,
    "subspace": BACKBONE,
    "dn2": BACKBONE,
    "retrieval": [*BACKBONE, "model.predictors.retrieval.neighbours=3"],
    "feature_mae": [*BACKBONE, *(f"model.predictors.neighbour.{key}" for key in ("width=16", "heads=2", "depth=1"))],
}


def train_once(adlight, kind, words):
    """Give a function that trains a model by its name, the first time it is asked for. -> the run's folder."""

    @functools.cache
    def run(name):
        return adlight.train(f"model={name}", *words, *MODELS[name], f"hydra.run.dir=runs/{kind}_{name}")

    return run


@pytest.fixture(scope="module")
def runs(adlight):
    """Trains a model once, on noise of 200 x 100 pixels."""
    fake_mvtec(adlight.folder / "wide", size=ORIGINAL)
    return train_once(adlight, "wide", ANY)


def rows_of(folder):
    return table(folder / "predictions.csv")


def boxes_of(row):
    return [tuple(map(int, box.split(","))) for box in row["boxes"].split()]


@pytest.mark.parametrize("name", MODELS)
def test_train_evaluate_predict(adlight, runs, name):
    run = runs(name)
    again = adlight.evaluate(run)
    before, after = map(content, (run, again))
    assert after["auroc"] == before["auroc"] and after["pixel_auroc"] == before["pixel_auroc"]
    tested = [row for row in rows_of(run) if "bottle/test/hole" in row["path"]]
    outcome = adlight(
        "predict", f"run={run}", "images=wide/bottle/test/hole", "save=masks,maps,panels", "hydra.run.dir=p"
    )
    assert outcome.code == 0, outcome.err
    for row, wanted in zip(rows_of(adlight.folder / "p"), tested, strict=True):
        assert float(row["score"]) == pytest.approx(float(wanted["score"]), rel=2e-2)
        for box in boxes_of(row):
            assert 0 <= box[0] < box[2] <= ORIGINAL[1] and 0 <= box[1] < box[3] <= ORIGINAL[0]
    with Image.open(adlight.folder / "p" / "masks" / "000.png") as mask:
        assert mask.size == ORIGINAL[::-1]
    with Image.open(adlight.folder / "p" / "maps" / "000.png") as overlay:
        assert overlay.size == ORIGINAL[::-1]


@pytest.mark.parametrize("name", MODELS)
def test_a_map_is_the_frame_and_a_mask_the_original(adlight, runs, name, monkeypatch):
    monkeypatch.chdir(adlight.folder)
    answer = Detector.load(runs(name), device="cpu", category="pooled")(np.zeros((*ORIGINAL, 3), np.uint8))[0]
    assert answer.anomaly_map.shape == (HEIGHT, WIDTH) and answer.reconstruction.shape == (3, HEIGHT, WIDTH)
    assert answer.mask.shape == ORIGINAL


def test_a_defect_is_found_where_it_is(adlight, runs, monkeypatch):
    """PCA of flat images misses exactly what is not flat."""
    monkeypatch.chdir(adlight.folder)
    detector = Detector.load(runs("pca"), device="cpu")
    detector.module.network.mean.fill_(0.5)
    detector.module.network.components.zero_()
    detector.threshold = detector.pixel_threshold = 0.1
    image = np.full((*ORIGINAL, 3), 128, np.uint8)
    image[25:50, 100:150] = 255  # in the frame rows 8 to 16, columns 32 to 48
    (left, top, right, bottom), *others = detector(image)[0].boxes
    assert not others
    assert (left, top, right, bottom) == pytest.approx((100, 25, 150, 50), abs=2 * 100 / HEIGHT + 1)


def test_the_gan_refuses_rectangles(adlight):
    outcome = adlight("train", *adlight.gan, "dataset.image_size=[8,16]")
    assert outcome.code == 2 and "image_size" in outcome.err and "[8, 16]" in outcome.err
    assert "Traceback" not in outcome.err
