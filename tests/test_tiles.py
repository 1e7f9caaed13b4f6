"""Detectors that look at images by tiles: trained, calibrated, tested and used through the same path."""

import csv
import json
import shutil
import tracemalloc

import numpy as np
import pytest
from hydra import initialize_config_dir
from makers import fake_mvtec
from PIL import Image
from processes import check_refused
from readers import content
from test_shapes import BACKBONE, boxes_of, rows_of, train_once

from adlight.data.frames import WholeFrame
from adlight.data.images import PreparedImage, to_input_array
from adlight.data.tiling import Tiling
from adlight.detection.pictures import draw_overlay
from adlight.detection.predictions import make_predictions, score_by_tiles
from adlight.detection.regions import annotate
from adlight.detector import Detector
from adlight.learning.cells import select_defect_cells
from adlight.learning.samples import score_labelled
from adlight.metrics.thresholds import Calibration, Threshold
from adlight.runs.config import CONF
from adlight.runs.folder import RunFolder
from adlight.runs.restore import frozen_config
from adlight.runs.subfolders import GroupFolder
from adlight.runs.weights import load_weights
from adlight.train import build
from adlight.types import ScoredImages, UserError

HEIGHT, WIDTH = 70, 100  # of the images; tiles of 64
TABLES = {".csv", ".jsonl", ".json", ".png"}
SETTINGS = [
    *("dataset=mvtec", "dataset.root=large", "dataset.category=bottle", "trainer=cpu", "logger=none"),
    *("dataset.batch_size=4", "dataset.eval_batch_size=3", "dataset.image_size=64", "dataset.tile=64"),
    *("trainer.max_epochs=1", "calibration.pixel=quantile:0.9", "calibration.image=quantile:0.5"),
]


@pytest.fixture(scope="module")
def runs(adlight):
    fake_mvtec(adlight.folder / "large", ("bottle",), train=8, size=(HEIGHT, WIDTH))
    return train_once(adlight, "tiles", SETTINGS)


def known_tiles(pixels, size, reconstruct=False, content=None):
    """A scorer whose map is the red channel."""
    maps = pixels[:, 0].astype(np.float32)
    assert len(maps) <= 4 and pixels.shape[-2:] == (64, 64) and (content is None or content.any((1, 2)).all())
    maps = maps if content is None else np.where(content, maps, 0)
    return ScoredImages(maps.max((1, 2)).astype(float), maps, pixels / np.float32(255) if reconstruct else None)


@pytest.mark.parametrize("name", ["mae_small", "pca", "retrieval", "feature_mae"])
def test_train_evaluate_predict(adlight, runs, name):
    run = runs(name)
    again = adlight.evaluate(run)
    before, after = map(content, (run, again))
    assert after["auroc"] == before["auroc"] and after["pixel_auroc"] == before["pixel_auroc"]
    tested = [row for row in rows_of(run) if "/test/hole/" in row["path"]]
    words = (f"run={run}", "images=large/bottle/test/hole", "save=masks,panels", "batch_size=3")
    assert adlight("predict", *words, f"hydra.run.dir=tiles_{name}").code == 0
    for row, wanted in zip(rows_of(adlight.folder / f"tiles_{name}"), tested, strict=True):
        assert float(row["score"]) == pytest.approx(float(wanted["score"]), rel=1e-4)
        assert float(row["area"]) == pytest.approx(float(wanted["area"]), abs=1e-3)
        assert boxes_of(row)[:1] == boxes_of(wanted)[:1], "in pixels of the originals, both"
    assert Image.open(adlight.folder / f"tiles_{name}" / "masks" / "000.png").size == (WIDTH, HEIGHT)
    assert (run / "panels" / "bottle.png").is_file() and len(rows_of(run)) == 9
    folds = 8 if name in ("pca", "retrieval") else 1  # of a training of one epoch the held-out image calibrates alone
    assert before["thresholds"]["bottle"]["num_normals"] == folds, "images, not tiles"


def test_thresholds_hold_for_the_tiles_of_the_run(adlight, runs, monkeypatch):
    monkeypatch.chdir(adlight.folder)
    run = runs("pca")
    image = "large/bottle/test/good/000.png"
    one, other = Detector.load(run, device="cpu"), Detector.load(run, device="cpu", tile=50)
    assert one(image)[0].anomaly_map.shape == (HEIGHT, WIDTH)
    with pytest.raises(UserError, match="no threshold"):
        other(image)
    other.threshold = other.pixel_threshold = 1.0
    assert other(image)[0].anomaly_map.shape == (HEIGHT, WIDTH)
    changed = adlight.evaluate(run, "dataset.overlap=0.6")
    thresholds = [json.loads((folder / "metrics.json").read_text())["threshold"] for folder in (run, changed)]
    assert thresholds[0] != thresholds[1]


def test_a_region_of_interest_holds_for_tiles(adlight, runs):
    inside = np.zeros((HEIGHT, WIDTH), np.uint8)
    inside[10:60, :30] = 255
    Image.fromarray(inside).save(adlight.folder / "strip.png")
    words = [*SETTINGS, "dataset.roi=strip.png", "calibration.folds=0", "hydra.run.dir=runs/tiles_roi"]
    run = adlight.train("model=retrieval", *words, *BACKBONE, "model.predictors.retrieval.neighbours=3")
    words = ("images=large/bottle/test/hole", "save=masks", "threshold=-1", "hydra.run.dir=tiles_roi")
    assert adlight("predict", f"run={run}", *words).code == 0
    mask = np.asarray(Image.open(adlight.folder / "tiles_roi" / "masks" / "000.png")) > 0
    assert mask.any() and not mask[inside == 0].any()


def test_labelled_images_have_the_scores_of_a_test_and_cells_in_all_tiles(adlight, runs, monkeypatch):
    monkeypatch.chdir(adlight.folder)
    run = RunFolder(runs("retrieval"))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = frozen_config(run, "cpu")
        config.run_dir = "."
        data, module, _ = build(config)
    load_weights(module, run.checkpoint("best"))
    labelled = score_labelled(module, data.source.test(), data, "32-true", lambda record, batch: record.category)
    tested = {row["path"]: row for row in rows_of(run.path)}
    assert [image.score for image in labelled] == pytest.approx(
        [float(tested[record.path]["score"]) for record in data.source.test()], rel=1e-4
    )
    defect = next(image for image in labelled if image.covered is not None)
    assert len(defect.tile_scores) == 4 == len(defect.cells.score) and (defect.covered.amax((1, 2)) > 0).sum() > 1
    assert len(select_defect_cells(defect.cells, defect.covered, 0.0)) == (defect.covered >= 0.25).sum()


def test_a_run_learns_from_labels_and_groups_its_anomalies(adlight, runs, tmp_path):
    run, data = tmp_path / "run", adlight.folder / "large" / "bottle"
    shutil.copytree(runs("retrieval"), run)
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        names = [f"00{i}" for i in range(3)]
        good = [(data / f"test/good/{name}.png", 0, "") for name in names]
        holes = [(data / f"test/hole/{name}.png", 1, data / f"ground_truth/hole/{name}_mask.png") for name in names]
        csv.writer(file).writerows([("path", "label", "mask"), *good, *holes])
    words = [f"labels={tmp_path / 'labels.csv'}", "recall=0.7", "device=cpu", f"hydra.run.dir={tmp_path / 'learned'}"]
    outcome = adlight("learn", f"run={run}", *words)
    assert outcome.code == 0 and "3 labelled defects (3 with masks), 3 normal" in outcome.out, outcome.err
    folder = adlight.evaluate(tmp_path / "learned", "callbacks=none")
    before, after = ({row["path"]: float(row["score"]) for row in rows_of(each)} for each in (run, folder))
    paths = sorted(path for path in before if "/good/" not in path)
    used = Detector.load(tmp_path / "learned", device="cpu")([str(adlight.folder / path) for path in paths])
    assert [found.score for found in used] == pytest.approx([after[path] for path in paths], rel=1e-4)
    assert all(after[path] != before[path] for path in paths)
    outcome = adlight("group", f"run={run}", "groups=2", "device=cpu", f"hydra.run.dir={tmp_path / 'groups'}")
    assert outcome.code == 0, outcome.err
    boxes = [tuple(map(int, row["box"].split(","))) for row in GroupFolder(tmp_path / "groups").read()[0]]
    assert max(box[2] for box in boxes) > 64 and all(box[2] <= WIDTH and box[3] <= HEIGHT for box in boxes)


def test_an_image_has_the_largest_score_of_its_tiles_and_their_maps():
    pixels = np.random.default_rng(0).integers(0, 200, (3, 150, 200), np.uint8)
    pixels[0, 120, 180] = 255
    tiling, content = Tiling(64, 0.25, (64, 64)), np.zeros((150, 200), bool)
    found = score_by_tiles(known_tiles, tiling, PreparedImage(pixels, (200, 150), None), 4, True)
    assert found.image == [255] and found.pixel[0] == pytest.approx(pixels[0], abs=1e-3)
    assert found.reconstruction[0] == pytest.approx(pixels / 255, abs=1e-5)
    content[:20, :90] = True
    part = score_by_tiles(known_tiles, tiling, PreparedImage(pixels, (200, 150), None, content), 4)
    assert part.image == [pixels[0][content].max()] and (part.pixel[0][~content] == 0).all()
    assert part.pixel[0][content] == pytest.approx(pixels[0][content], abs=1e-3)


@pytest.mark.parametrize("words", [(), ("roi=strip.png", "closing=2", "min_area=0.001")])
def test_large_images_are_predicted_in_bands_to_the_same_files(adlight, runs, in_bands, words):
    run, folders = runs("retrieval"), [adlight.folder / f"bands_{len(words)}{kind}" for kind in ("whole", "bands")]
    Image.fromarray(np.pad(np.full((50, 30), 255, np.uint8), ((10, 10), (0, 70)))).save(adlight.folder / "strip.png")
    settings = (f"run={run}", "images=large/bottle/test", "save=masks,maps", "threshold=0", "pixel_threshold=0", *words)
    for folder in folders:
        assert adlight("predict", *settings, f"hydra.run.dir={folder}").code == 0
        in_bands(300)
    names = [path.relative_to(folders[0]) for path in sorted(folders[0].rglob("*.*")) if path.suffix in TABLES]
    assert len(names) == 3 + 2 * 9
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    regions = json.loads((folders[0] / "regions.json").read_text())["annotations"]
    assert len(regions) >= 9 and max(region["area"] for region in regions) > 300


def test_beside_files_memory_does_not_grow_with_the_image(in_bands):
    """From tiles to regions and pictures; what Pillow allocates is not counted."""
    in_bands(2**14)
    tiling, calibration = Tiling(64, 0.25, (64, 64)), Calibration("0", "0.5", closing=2)

    def peak(side):
        tracemalloc.start()
        pixels = to_input_array(Image.new("RGB", (side, side), (9, 8, 7)), 3, WholeFrame())
        pixels[0, side // 4 : side // 2] = 100  # one large region
        image = PreparedImage(pixels, (side, side), None)
        scores = score_by_tiles(known_tiles, tiling, image, 4)
        assert scores.is_finite.all()
        threshold = Threshold(0, 20)
        (found,) = make_predictions([image], [threshold], scores, None, WholeFrame(), calibration)
        regions = annotate(found.mask, found.anomaly_map)
        draw_overlay(Image.new("RGB", (side, side)), found)
        memory = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(regions) == 1 and regions[0]["area"] == found.mask.sum() > side**2 / 5
        return memory

    peak(128)
    assert peak(1024) < peak(512) + 600_000, "0.8 bytes for each pixel more"


@pytest.mark.parametrize("broken", [0, 1, 5])
def test_a_score_of_a_tile_that_is_not_finite_is_not_lost(broken):
    calls = []

    def diverged(pixels, size, reconstruct=False, content=None):
        calls.append(len(pixels))
        scores = known_tiles(pixels, size)
        return scores._replace(image=np.where(len(calls) == 1 + broken, np.nan, scores.image))

    image = PreparedImage(np.ones((3, 150, 200), np.uint8), (200, 150), None)
    found = score_by_tiles(diverged, Tiling(64, 0.25, (64, 64)), image, 2)
    assert len(calls) > broken and not found.is_finite.any()


def test_memory_is_that_of_a_batch_beside_the_image_and_its_map():
    tiling = Tiling(64, 0.25, (64, 64))

    def beside(side):
        pixels = np.zeros((3, side, side), np.uint8)
        tracemalloc.start()
        found = score_by_tiles(known_tiles, tiling, PreparedImage(pixels, (side, side), None), 4)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak - found.pixel.nbytes

    assert beside(2048) < beside(512) + 300_000 < 600_000, "of a map of 17 MB"


@pytest.mark.parametrize(
    ("words", "said"),
    [("dataset.keep_shape=true", "keep_shape"), ("dataset.tile=3", "tile"), ("dataset.overlap=1", "overlap")],
)
def test_bad_input_is_one_line(adlight, runs, words, said):
    check_refused(adlight("train", "model=pca", *SETTINGS, words, "hydra.run.dir=runs/refused_tiles"), said)
