"""Regions of interest: what lies outside is neither trained on, scored nor counted, by any detector."""

import json
import pickle
import shutil
from pkgutil import resolve_name

import numpy as np
import pytest
from makers import fake_mvtec, write_image
from PIL import Image
from processes import check_refused
from sklearn.metrics import roc_auc_score
from test_shapes import BACKBONE, MODELS, rows_of, train_once

from adlight.data.roi import check_selection
from adlight.detector import Detector
from adlight.runs.restore import DETECTORS as DETECTORS_OF
from adlight.types import UserError

SIZE = 64  # of the images
SETTINGS = [
    *("dataset=mvtec", "dataset.root=regions", "dataset.category=bottle", "trainer=cpu", "logger=none"),
    *("dataset.batch_size=4", "dataset.image_size=64", "dataset.roi=roi.png", "trainer.max_epochs=1"),
    *("calibration.pixel=quantile:0.9", "calibration.folds=0"),
]

DETECTORS = ["mae_small", "pca", "knn", "retrieval", "patchcore", "feature_mae"]
COMPLEMENTARY = [
    *("model=feature_mae", "model/predictor@model.predictors.neighbour=complementary", *BACKBONE),
    *(f"model.predictors.neighbour.{key}" for key in ("width=16", "heads=2", "encoder_depth=1", "decoder_depth=1")),
]


@pytest.fixture(scope="module")
def runs(adlight):
    fake_mvtec(adlight.folder / "regions", ("bottle",), train=8, size=SIZE)
    inside = np.zeros((SIZE, SIZE), np.uint8)
    inside[:48, 8:32] = 255
    inside[11:21, 19:24] = 0  # a hole: no rectangle
    Image.fromarray(inside).save(adlight.folder / "roi.png")
    return train_once(adlight, "roi", SETTINGS)


@pytest.fixture
def detector(adlight, runs, monkeypatch):
    monkeypatch.chdir(adlight.folder)  # as the run knows it, the mask lies here
    return lambda name, **settings: Detector.load(runs(name), device="cpu", **settings)


def region(adlight):
    return np.asarray(Image.open(adlight.folder / "roi.png")) > 0


def with_other_surroundings(adlight, folder):
    """The data set again, with other pixels outside the region."""
    inside = region(adlight)[..., None]
    shutil.copytree(adlight.folder / "regions", folder)
    for i, path in enumerate(sorted(folder.rglob("*.png"))):
        if "ground_truth" not in path.parts:
            image = np.asarray(Image.open(path))
            noise = np.random.default_rng(i).integers(0, 256, image.shape, np.uint8)
            Image.fromarray(np.where(inside, image, noise)).save(path)
    return folder


@pytest.mark.parametrize("name", DETECTORS)
def test_what_lies_outside_changes_nothing(adlight, detector, name, tmp_path):
    found = detector(name)
    image = np.random.default_rng(99).integers(0, 256, (64, 64, 3), np.uint8)
    inside = np.asarray(Image.open("roi.png").resize((64, 64), Image.Resampling.NEAREST)) > 0
    first, second = (found(np.where(inside[..., None], image, other))[0] for other in (image, 255 - image))
    assert first.score == second.score and (first.anomaly_map == second.anomaly_map).all()
    assert (first.anomaly_map[~inside] == 0).all() and (first.anomaly_map[inside] > 0).any()
    assert not (first.mask & ~inside).any()
    assert pickle.loads(pickle.dumps(found))(image)[0].score == first.score
    found.threshold = -1.0
    assert found(image)[0].boxes and not (found(image)[0].mask & ~inside).any()


def test_training_and_metrics_are_those_of_the_region(adlight, runs, tmp_path):
    """A data set with other surroundings leads to the same run, to the last digit."""
    other = with_other_surroundings(adlight, tmp_path / "data")
    for name in ("mae_small", "retrieval"):
        words = [f"model={name}", *SETTINGS, *MODELS[name], f"dataset.root={other}", f"hydra.run.dir={tmp_path / name}"]
        results = [json.loads((run / "metrics.json").read_text()) for run in (runs(name), adlight.train(*words))]
        for key in ("auroc", "pixel_auroc", "threshold", "pixel_threshold", "validation"):
            assert results[0][key] == results[1][key], (name, key)


def test_pixel_metrics_count_the_region(adlight, runs, detector):
    rows = rows_of(runs("pca"))
    inside = np.asarray(Image.open(adlight.folder / "roi.png").resize((64, 64), Image.Resampling.NEAREST)) > 0
    scores, truth = [], []
    for row, answer in zip(rows, detector("pca")([row["path"] for row in rows]), strict=True):
        assert answer.score == pytest.approx(float(row["score"]), rel=1e-5)
        mask = np.zeros((64, 64), bool)
        if int(row["label"]):
            file = row["path"].replace("/test/", "/ground_truth/").replace(".png", "_mask.png")
            mask = np.asarray(Image.open(file).resize((64, 64), Image.Resampling.NEAREST)) > 0
        scores.append(answer.anomaly_map[inside])
        truth.append(mask[inside])
    found = json.loads((runs("pca") / "metrics.json").read_text())["pixel_auroc"]
    assert found == pytest.approx(roc_auc_score(np.concatenate(truth), np.concatenate(scores)), abs=1e-4)


def test_complementary_masks_and_masks_by_name(adlight, tmp_path):
    """Each image has a mask of its own."""
    data = fake_mvtec(tmp_path / "data", ("bottle",), train=8, size=SIZE)
    for i, path in enumerate(sorted((data / "bottle").rglob("*.png"))):
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[:40, i % 5 : 40] = 255
        target = tmp_path / "masks" / path.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(target)
    words = [f"dataset.root={data}", f"dataset.roi={tmp_path / 'masks'}", f"hydra.run.dir={tmp_path / 'run'}"]
    run = adlight.train(*COMPLEMENTARY, *SETTINGS, *words)
    assert 0 <= json.loads((run / "metrics.json").read_text())["auroc"] <= 1
    stranger = write_image(tmp_path / "new" / "x.png", 0, SIZE)
    outcome = adlight("predict", f"run={run}", f"images={stranger}", "save=none", f"hydra.run.dir={tmp_path / 'p'}")
    assert outcome.code == 2 and "no region of interest" in outcome.err and "x.png" in outcome.err
    words = (f"roi={adlight.folder / 'roi.png'}", "save=masks", "threshold=-1", f"hydra.run.dir={tmp_path / 'p'}")
    outcome = adlight("predict", f"run={run}", f"images={stranger}", *words)
    assert outcome.code == 0, outcome.err
    assert not (np.asarray(Image.open(tmp_path / "p" / "masks" / "x.png")) > 0)[48:].any()


@pytest.mark.parametrize(
    ("takes_padding", "keep_shape", "tiling", "said"),
    [(False, False, None, "whole images"), (True, True, None, "keep_shape"), (True, True, object(), "keep_shape")],
)
def test_a_finished_model_refuses_what_its_training_would(takes_padding, keep_shape, tiling, said):
    roi = None if tiling else "roi.png"
    with pytest.raises(UserError, match=said):
        check_selection(takes_padding, keep_shape, roi, tiling)
    check_selection(takes_padding, keep_shape, None, None)
    check_selection(True, False, roi, tiling)


@pytest.mark.parametrize("target", sorted({*DETECTORS_OF.values()} - {"adlight.gan.detector.GAN"}))
def test_detectors_and_trainings_agree_on_padding(target):
    trainings = [resolve_name(one) for one, of in DETECTORS_OF.items() if of == target]
    wanted = getattr(resolve_name(target), "takes_padding", None)
    assert all(getattr(one, "takes_padding", None) == wanted for one in trainings)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dataset.roi=nowhere.png"], "nowhere.png"),
        (["dataset.roi=runs"], "no region of interest of"),
        (["dataset.keep_shape=true"], "keep_shape"),
        (["model=gan"], "dataset.roi=null"),
    ],
)
def test_bad_input_is_one_line(adlight, runs, words, said):
    check_refused(adlight("train", "model=pca", *SETTINGS, *words, "hydra.run.dir=runs/refused_roi"), said)


@pytest.mark.parametrize("name", ["pca", "retrieval"])  # cells that are averages of the map, and a detector's own
def test_labels_and_groups_keep_to_the_region(adlight, runs, name, tmp_path):
    """Other surroundings of the labelled images change nothing of what is learned, and a defect outside is refused."""
    scores, image = [], np.random.default_rng(99).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    for i, data in enumerate((adlight.folder / "regions", with_other_surroundings(adlight, tmp_path / "data"))):
        run, table = tmp_path / f"run{i}", tmp_path / f"labels{i}.csv"
        shutil.copytree(runs(name), run, ignore=shutil.ignore_patterns("evaluations", "predictions"))
        place = data / "bottle" / "test" / "hole"
        rows = [f"{place}/{path.name},1,bottle" for path in sorted(place.iterdir())[:2]]
        table.write_text("\n".join(["path,label,category", *rows]))
        words = [f"run={run}", "device=cpu"]
        outcome = adlight("learn", *words, f"labels={table}", f"hydra.run.dir={tmp_path}/learned{i}")
        assert outcome.code == 0, outcome.err
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(adlight.folder)
            scores.append(Detector.load(tmp_path / f"learned{i}", device="cpu")(image)[0])
    assert scores[0].score == scores[1].score and (scores[0].anomaly_map == scores[1].anomaly_map).all()
    assert (scores[0].anomaly_map[~region(adlight)] == 0).all()
    mask = Image.fromarray(np.where(np.arange(SIZE) >= 40, np.uint8(255), np.uint8(0))[None].repeat(SIZE, 0))
    mask.save(tmp_path / "mask.png")
    table.write_text(f"path,label,mask\n{place}/000.png,1,{tmp_path}/mask.png\n")
    check_refused(adlight("learn", *words, f"labels={table}", f"hydra.run.dir={tmp_path}/outside"), "mask")
    outcome = adlight("group", *words, "groups=2", f"hydra.run.dir={tmp_path}/groups")
    assert outcome.code == 0, outcome.err
