"""Images that keep their shape in one frame: what lies beside them is neither trained on, scored nor counted."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from makers import fake_mvtec, write_image, write_mask
from omegaconf import OmegaConf
from PIL import Image
from readers import content
from sklearn.metrics import average_precision_score, roc_auc_score
from test_shapes import ANY, MODELS, boxes_of, rows_of, train_once

from adlight.data.frames import Frame, is_content
from adlight.data.image_files import read_image
from adlight.detection.inference import make_batch
from adlight.detector import Detector
from adlight.runs.config import instantiate_node
from adlight.runs.folder import RunFolder

FRAME = 32, 64
SHAPES = ((100, 200), (100, 100), (200, 100))  # heights and widths
INSIDE = ((32, 64), (32, 32), (32, 16))  # of the frame
KEPT = [
    *("dataset=mvtec", "dataset.root=mixed", "trainer=cpu", "logger=none", "dataset.batch_size=4"),
    *(f"dataset.image_size=[{FRAME[0]},{FRAME[1]}]", "dataset.keep_shape=true", "trainer.max_epochs=1"),
    "calibration.pixel=quantile:0.9",
]
PIXELS = {"mae_small": 1e-5, "pca": 1e-5, "knn": 1e-5}  # how exactly pixel metrics can be computed once more
# how exactly in 16 bits, batch by batch
FEATURES = {"retrieval": 2e-2, "feature_mae": 2e-2, "patchcore": 2e-2, "subspace": 2e-2, "dn2": 2e-2}
PADDED = {**PIXELS, **FEATURES}


@pytest.fixture(scope="module")
def runs(adlight):
    """Trains a model once, on noise of three shapes."""
    root = adlight.folder / "mixed"
    fake_mvtec(root, ("bottle",), size=SHAPES[0])
    for i, size in enumerate(SHAPES[1:] * 4):
        write_image(root / "bottle" / "train" / "good" / f"other{i}.png", 50 + i, size)
        write_image(root / "bottle" / "test" / "good" / f"other{i}.png", 70 + i, size)
        write_image(root / "bottle" / "test" / "hole" / f"other{i}.png", 90 + i, size)
        write_mask(root / "bottle" / "ground_truth" / "hole" / f"other{i}_mask.png", size)
    return train_once(adlight, "kept", KEPT)


@pytest.fixture
def detector(adlight, runs, monkeypatch):
    monkeypatch.chdir(adlight.folder)
    return lambda name: Detector.load(runs(name), device="cpu")


@pytest.mark.parametrize("name", PADDED)
def test_train_evaluate_predict(adlight, runs, name):
    run = runs(name)
    again = adlight.evaluate(run)
    before, after = map(content, (run, again))
    assert after["auroc"] == before["auroc"] and after["pixel_auroc"] == before["pixel_auroc"]
    tested = [row for row in rows_of(run) if "/test/hole/" in row["path"]]
    words = (f"run={run}", "images=mixed/bottle/test/hole", "save=masks,panels", f"hydra.run.dir=predicted_{name}")
    assert adlight("predict", *words).code == 0
    predicted = adlight.folder / f"predicted_{name}"
    for row, wanted in zip(rows_of(predicted), tested, strict=True):
        width, height = Image.open(adlight.folder / row["path"]).size
        assert float(row["score"]) == pytest.approx(float(wanted["score"]), rel=max(1e-4, PADDED[name]))
        assert float(row["area"]) == pytest.approx(float(wanted["area"]), abs=max(2e-3, PADDED[name]))
        assert all(0 <= a < c <= width and 0 <= b < d <= height for a, b, c, d in boxes_of(row))
        h, w = Frame(FRAME, keep_shape=True).fit(width, height)
        assert all(c <= w and d <= h for _, _, c, d in boxes_of(wanted))
    assert Image.open(predicted / "masks" / "other1.png").size == (100, 200)
    assert (run / "panels" / "bottle.png").is_file()


@pytest.mark.parametrize("name", PADDED)
def test_answers_have_the_shape_of_the_image(detector, name):
    for (height, width), inside in zip(SHAPES, INSIDE, strict=True):
        answer = detector(name)(np.full((height, width, 3), 99, np.uint8))[0]
        assert answer.anomaly_map.shape == inside and answer.reconstruction.shape == (3, *inside)
        assert answer.mask.shape == (height, width)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_defect_is_found_where_it_is(detector, shape):
    """PCA of flat images misses exactly what is not flat."""
    found = detector("pca")
    found.module.network.mean.fill_(0.5)
    found.module.network.components.zero_()
    found.threshold = found.pixel_threshold = 0.1
    height, width = shape
    image = np.full((*shape, 3), 128, np.uint8)
    image[height // 4 : height // 2, width // 2 : width * 3 // 4] = 255
    answer = found(image)[0]
    assert len(answer.boxes) == 1
    wanted = width // 2, height // 4, width * 3 // 4, height // 2
    pixel = max(shape) / (64 if width == 2 * height else 32)  # of the frame, in pixels of the original
    assert answer.boxes[0] == pytest.approx(wanted, abs=2 * pixel + 1)
    assert answer.area == pytest.approx(answer.mask.mean(), abs=1e-2) and 0.04 < answer.area < 0.15


@pytest.mark.parametrize("name", PADDED)
def test_pixel_metrics_are_those_of_the_images_alone(adlight, runs, detector, name):
    """Computed once more from maps and masks that have no padding."""
    with (runs(name) / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores, truth = [], []
    for row, answer in zip(rows, detector(name)([row["path"] for row in rows]), strict=True):
        scores.append(answer.anomaly_map.ravel())
        mask = np.zeros(answer.anomaly_map.shape, bool)
        if int(row["label"]):
            file = row["path"].replace("/test/", "/ground_truth/").replace(".png", "_mask.png")
            mask = np.asarray(read_image(file).resize(mask.shape[::-1], Image.Resampling.NEAREST)) > 0
        truth.append(mask.ravel())
    scores, truth = np.concatenate(scores), np.concatenate(truth)
    found = json.loads((runs(name) / "metrics.json").read_text())
    assert found["pixel_auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=PADDED[name])
    assert found["pixel_ap"] == pytest.approx(average_precision_score(truth, scores), abs=PADDED[name])
    assert 0 < truth.mean() < 0.1


@pytest.mark.parametrize("name", PADDED)
def test_what_lies_in_the_padding_changes_nothing(detector, name):
    module = detector(name).module
    size = torch.tensor(INSIDE)
    image = torch.randint(0, 256, (3, 3, *FRAME), generator=torch.manual_seed(0), dtype=torch.uint8)
    content = is_content(size, image[:, 0])
    other = torch.where(content[:, None], image, 255 - image)
    with torch.no_grad():
        first, second = (module.score(make_batch(one, size)) for one in (image, other))
    assert torch.equal(first["image"], second["image"]) and torch.equal(first["pixel"], second["pixel"])
    assert torch.equal(first["pixel"] * ~content, torch.zeros(3, *FRAME))


def test_a_training_step_sees_no_padding(runs):
    config = RunFolder(runs("mae_small")).config()
    config.model.objective.lpips = 0
    module, size = instantiate_node(config.model), torch.tensor(INSIDE)
    image = torch.rand(3, 3, *FRAME, generator=torch.manual_seed(0))
    other = torch.where(is_content(size, image[:, 0])[:, None], image, 0)
    module._trainer = SimpleNamespace(fit_loop=SimpleNamespace(total_batch_idx=0), global_rank=0)
    module.log = lambda *_, **__: None
    gradients = []
    for shown in (image, other):
        module.zero_grad()
        module.training_step({"image": shown, "size": size}, 0).backward()
        gradients.append([p.grad.clone() for p in module.network.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", ["pca", "knn", *FEATURES])
def test_numbers_are_those_without_the_padding(adlight, name):
    """Images of one shape: in a frame of that shape, and in a larger one."""
    if not (adlight.folder / "wide").exists():
        fake_mvtec(adlight.folder / "wide", size=SHAPES[0])
    words = [f"model={name}", *ANY, *MODELS[name]]
    alone = adlight.train(*words, f"hydra.run.dir=runs/alone_{name}")
    frame = ("dataset.image_size=64", "dataset.keep_shape=true")
    padded = adlight.train(*words, *frame, f"hydra.run.dir=runs/padded_{name}")
    first, second = (json.loads((run / "metrics.json").read_text()) for run in (alone, padded))
    for metric in ("auroc", "ap", "f1_calibrated", "pixel_auroc", "pixel_ap", "aupro", "pixel_iou_calibrated"):
        assert first[metric] == pytest.approx(second[metric], abs=1e-4 if name in PIXELS else 5e-3), metric
    longer = 2**0.5 if name in ("pca", "knn") else 1  # a distance, as if the frame were full
    for row, wanted in zip(rows_of(padded), rows_of(alone), strict=True):
        assert float(row["score"]) == pytest.approx(longer * float(wanted["score"]), rel=PADDED[name])


def test_models_that_need_whole_frames_refuse_before_any_image_is_read(adlight):
    outcome = adlight("train", *adlight.gan, "dataset.keep_shape=true", "hydra.run.dir=refused")
    assert outcome.code == 2 and "dataset.keep_shape" in outcome.err and "Traceback" not in outcome.err


def test_auto_lets_the_shapes_decide(adlight, runs, monkeypatch):
    """Once, when a run begins: what comes later keeps to it, and a sweep knows its job again."""
    runs("pca")  # makes the images
    words = [word for word in KEPT if not word.startswith(("dataset.image_size", "dataset.keep_shape"))]
    words += ["dataset.image_size=32", "dataset.keep_shape=auto", *MODELS["retrieval"], "model=retrieval"]
    sweep = [*words, "-m", "seed=0", "hydra.sweep.dir=runs/auto"]
    first = adlight("train", *sweep)
    assert first.code == 0, first.err
    (run,) = (path.parents[1] for path in (adlight.folder / "runs" / "auto").glob("*/.hydra/config.yaml"))
    chosen = OmegaConf.load(run / ".hydra" / "config.yaml").dataset
    assert (list(chosen.image_size), chosen.resize, chosen.keep_shape) == ([64, 64], 32, True)
    before = json.loads((run / "metrics.json").read_text())
    assert json.loads((adlight.evaluate(run) / "metrics.json").read_text())["auroc"] == before["auroc"]
    monkeypatch.chdir(adlight.folder)
    answers = Detector.load(run, device="cpu")([np.zeros((*shape, 3), np.uint8) for shape in SHAPES])
    assert [one.anomaly_map.shape for one in answers] == [(32, 64), (32, 32), (64, 32)]

    again = adlight("train", *sweep, "resume_sweep=true")
    assert again.code == 0 and json.loads((run / "metrics.json").read_text()) == before
    (run / "metrics.json").unlink()
    resumed = adlight("train", *sweep, "resume_sweep=true", "trainer.max_epochs=1")
    assert resumed.code == 0, resumed.err
    assert json.loads((run / "metrics.json").read_text())["auroc"] == before["auroc"]
    other = adlight("train", *sweep, "resume_sweep=true", "dataset.image_size=48")
    assert other.code == 2 and "dataset.image_size" in other.err
