import json
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import fake_mvtec
from PIL import Image
from processes import call
from pytorch_lightning import LightningModule
from readers import table

from adlight.detector import Detector
from adlight.runs.tables import COLUMNS
from adlight.types import UserError

SIZE, ORIGINAL = 32, 48  # of the model, of the images
TINY = [
    *("model=mae_small", "dataset=mvtec", "dataset.category=bottle", "trainer=cpu", "logger=none"),
    *(f"dataset.image_size={SIZE}", "dataset.batch_size=4", "trainer.max_epochs=1"),
    *("model.network.encoder_width=32", "model.network.encoder_heads=2", "calibration.pixel=quantile:0.9"),
    *("model.network.decoder_width=32", "model.network.decoder_heads=2", "calibration.image=quantile:0.5"),
    *("model.scorer.score=mse", "model.scorer.reduce=mean"),  # the article's equation 1, which is easily computed anew
]


def train_tiny(folder):
    """Train a tiny model for an epoch on noise; returns the run folder and the data's root."""
    data = fake_mvtec(folder / "data", ("bottle",), size=ORIGINAL)
    outcome = call(folder, "train", *TINY, f"dataset.root={data}", f"hydra.run.dir={folder / 'run'}")
    assert outcome.code == 0, outcome.err
    return folder / "run", data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_tiny(tmp_path_factory.mktemp("detector"))[0]


@pytest.fixture
def detector(run):
    return Detector.load(run, device="cpu")


@pytest.fixture(scope="module")
def rows(run):
    return table(run / "predictions.csv")


def test_an_overlap_without_tiles_is_refused(run):
    with pytest.raises(UserError, match="overlap"):
        Detector.load(run, device="cpu", overlap=0.5)


def test_predictions_are_those_of_the_run(detector, rows):
    predictions = detector([row["path"] for row in rows])
    assert len(predictions) == 9
    for prediction, row in zip(predictions, rows, strict=True):
        assert prediction.score == pytest.approx(float(row["score"]), rel=1e-6)
        assert prediction.threshold == float(row["threshold"]) == detector.threshold
        assert prediction.anomalous == bool(int(row["anomalous"]))
        assert prediction.area == pytest.approx(float(row["area"]), abs=1e-9)
        inside = [[int(edge) for edge in box.split(",")] for box in row["boxes"].split()]
        outward = [(a * 3 // 2, b * 3 // 2, -(-c * 3 // 2), -(-d * 3 // 2)) for a, b, c, d in inside]
        assert prediction.boxes == outward and bool(prediction.boxes) == prediction.anomalous == prediction.mask.any()
    assert any(prediction.boxes for prediction in predictions)


def test_what_a_prediction_holds(detector, rows):
    prediction = detector(rows[0]["path"])[0]
    assert prediction.mask.shape == (ORIGINAL, ORIGINAL) and prediction.mask.dtype == bool
    assert prediction.anomaly_map.shape == (SIZE, SIZE) and prediction.anomaly_map.dtype == np.float32
    assert prediction.reconstruction.shape == (3, SIZE, SIZE) and prediction.reconstruction.dtype == np.float32
    image = np.asarray(Image.open(rows[0]["path"]).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    error = (image.transpose(2, 0, 1) / 255 - prediction.reconstruction) ** 2  # article eq. 1
    assert prediction.score == pytest.approx(error.mean(), rel=1e-4)


def test_a_prediction_does_not_depend_on_the_batch(run, detector, rows):
    paths = [row["path"] for row in rows]
    together, alone = detector(paths), Detector.load(run, device="cpu", batch_size=1)(paths)
    mixed = detector(paths[::-1])[::-1]
    for other in (alone, mixed):
        for a, b in zip(together, other, strict=True):
            assert a.score == pytest.approx(b.score, rel=1e-6)
            assert np.allclose(a.anomaly_map, b.anomaly_map, rtol=1e-5, atol=1e-7)
            assert (a.anomalous, a.boxes) == (b.anomalous, b.boxes)


def test_every_kind_of_image(detector, rows):
    paths = [row["path"] for row in rows[:3]]
    pictures = [Image.open(path) for path in paths]
    arrays = np.stack([np.asarray(picture) for picture in pictures])
    tensor = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    wanted = [prediction.score for prediction in detector(paths)]
    wide = [array.astype(np.uint16) * 257 for array in arrays]
    for images in (pictures, arrays, list(arrays), tensor, list(tensor), wide):
        assert [prediction.score for prediction in detector(images)] == pytest.approx(wanted, rel=1e-6)
    for image in (paths[0], pictures[0], arrays[0], tensor[0]):
        assert [prediction.score for prediction in detector(image)] == pytest.approx(wanted[:1], rel=1e-6)
    grey = arrays[0, :, :, 0]
    alone = [detector(image)[0].score for image in (grey, grey[..., None], torch.from_numpy(grey))]
    assert alone == pytest.approx([alone[0]] * 3)
    assert detector([]) == []


def test_boxes_and_mask_have_the_originals_size(detector):
    image = np.random.default_rng(0).integers(0, 256, (40, 100, 3), dtype=np.uint8)
    detector.pixel_threshold = float(np.quantile(detector(image)[0].anomaly_map, 0.8))
    detector.threshold = 1e9
    assert not detector(image)[0].mask.any()  # a normal image has no region
    detector.threshold = -1
    prediction = detector(image)[0]
    assert prediction.area == pytest.approx(0.2, abs=0.01) and prediction.mask.shape == (40, 100)
    inside = np.zeros_like(prediction.mask)
    for left, top, right, bottom in prediction.boxes:
        assert 0 <= left < right <= 100 and 0 <= top < bottom <= 40
        inside[top:bottom, left:right] = True
    assert prediction.mask.any() and not (prediction.mask & ~inside).any()


def test_a_centre_crop_finds_nothing_outside(detector):
    image = np.random.default_rng(0).integers(0, 256, (48, 96, 3), dtype=np.uint8)
    cropping = Detector(detector.module, SIZE, resize=48)
    cropping.threshold, cropping.pixel_threshold = -1, 0  # every pixel that is looked at
    prediction = cropping(image)[0]
    assert prediction.boxes == [(16, 8, 80, 40)] and prediction.area == 1
    assert prediction.mask[8:40, 16:80].all() and prediction.mask.sum() == 32 * 64
    inner = np.asarray(Image.fromarray(image).resize((48, 48), Image.Resampling.BILINEAR, reducing_gap=3.0))[8:40, 8:40]
    alone = Detector(detector.module, SIZE)(inner)[0]
    assert prediction.score == pytest.approx(alone.score, rel=1e-6)
    assert prediction.anomaly_map.shape == (48, 48) and np.array_equal(
        prediction.anomaly_map[8:40, 8:40], alone.anomaly_map
    )
    assert prediction.reconstruction.shape == (3, 48, 48)


def test_threshold_can_be_set(detector, rows):
    detector.threshold = -1
    assert all(prediction.anomalous and prediction.threshold == -1 for prediction in detector(rows[0]["path"]))
    detector.threshold = "1e9"
    assert not detector(rows[0]["path"])[0].anomalous
    for method in ("quantile:0.99", "max", "sigma:3"):
        with pytest.raises(UserError, match=rf"{method}.*adlight evaluate"):
            detector.threshold = method
    with pytest.raises(UserError, match="high"):
        detector.threshold = "high"
    assert detector.threshold == 1e9


def test_whose_thresholds(tiny_run, adlight, tmp_path):
    """A model of two categories: by name, by folder, by looks, or those of all together where they are asked for."""
    run, image = tiny_run[0], adlight.folder / "data" / "screw" / "test" / "hole" / "000.png"
    several = Detector.load(run, device="cpu")
    known = several.module.calibration
    deep = shutil.copytree(image.parent, tmp_path / "bottle" / "screw" / "day 1" / "hole") / image.name
    for path in (image, deep):  # the nearest folder that has a category's name
        assert [found.threshold_source for found in several(path)] == ["screw"]
    elsewhere = shutil.copy(image, tmp_path / "x.png")
    kinds = [str(image), str(elsewhere), Image.open(image), np.asarray(Image.open(image))]
    for category, source in (("bottle", "bottle"), ("screw", "screw"), ("pooled", "all categories"), ("auto", None)):
        detector = Detector.load(run, device="cpu", category=category)
        predictions = [detector(one)[0] for one in kinds] + detector(kinds)
        assert len({found.threshold_source for found in predictions} | ({source} if source else set())) == 1
        used = known.of(predictions[0].threshold_source)
        for found in predictions:
            assert (found.threshold, found.pixel_threshold) == (used.image, used.pixel)
            assert bool(found.boxes) == (found.area > 0) == found.anomalous == predictions[0].anomalous
        if source:
            assert (detector.threshold, detector.pixel_threshold) == (used.image, used.pixel)


def test_a_detector_of_another_category_shares_the_rest(tiny_run, adlight):
    image = adlight.folder / "data" / "screw" / "test" / "hole" / "000.png"
    first = Detector.load(tiny_run[0], device="cpu", category="screw")
    other = first.with_category("bottle")
    assert other.module is first.module and other.calibration is first.calibration
    assert [one(image)[0].threshold_source for one in (first, other)] == ["screw", "bottle"]
    assert first(image)[0].score == other(image)[0].score
    with pytest.raises(UserError, match="did you mean screw"):
        first.with_category("scrw")


def test_an_unknown_category_stops(tiny_run, adlight, tmp_path):
    run, image = tiny_run[0], adlight.folder / "data" / "screw" / "test" / "hole" / "000.png"
    several = Detector.load(run, device="cpu")
    elsewhere = Path(shutil.copy(image, tmp_path / "x.png"))
    for one in (elsewhere, Image.open(image), np.asarray(Image.open(image))):
        with pytest.raises(
            UserError, match=r"bottle, screw.*category=<name>.*category=auto.*category=pooled"
        ) as caught:
            several(one)
        assert (str(elsewhere) in str(caught.value)) == (one is elsewhere)
    for name in ("threshold", "pixel_threshold"):  # they differ
        with pytest.raises(UserError, match="category="):
            getattr(several, name)
    several.threshold = 0.5
    assert several(image)[0].pixel_threshold == several.calibration.of("screw").pixel
    with pytest.raises(UserError, match="category="):  # the pixels' still differ
        several(elsewhere)
    several.pixel_threshold = 0.5
    assert several(elsewhere)[0].threshold_source == "given"
    together = Detector.load(run, device="cpu", overrides=["calibration.per=all"])
    assert together(elsewhere)[0].threshold == together.threshold == together.calibration.pooled.image


@pytest.mark.parametrize("overrides", [[], ["calibration.per=all"], ["model.scorer.reduce=max"]])
def test_a_misspelt_category_is_named(tiny_run, overrides):
    with pytest.raises(UserError, match=r"unknown category 'scrw'; did you mean screw\?.*bottle, screw, auto, pooled"):
        Detector.load(tiny_run[0], device="cpu", category="scrw", overrides=overrides)


def test_a_model_of_one_category_takes_every_image_for_it(run, rows):
    image = Image.open(rows[0]["path"])
    for category in (None, "bottle", "auto"):
        assert Detector.load(run, device="cpu", category=category)(image)[0].threshold_source == "bottle"
    assert Detector.load(run, device="cpu", category="pooled")(image)[0].threshold_source == "all categories"
    with pytest.raises(UserError, match="unknown category 'screw'"):
        Detector.load(run, device="cpu", category="screw")


def test_an_image_whose_score_is_no_number_is_named(detector, rows, monkeypatch):
    scores = detector.module.score

    def broken(batch):
        found = scores(batch)
        found["pixel"][1, 0, 0] = float("nan")
        return found

    monkeypatch.setattr(detector.module, "score", broken)
    with pytest.raises(UserError, match=rows[1]["path"]):
        detector([row["path"] for row in rows[:3]])


def test_a_changed_model_needs_thresholds_of_its_own(run, rows):
    changed = Detector.load(run, device="cpu", overrides=["model.scorer.reduce=max"])
    with pytest.raises(UserError, match=r"threshold.*pixel_threshold"):
        changed(rows[0]["path"])
    changed.threshold, changed.pixel_threshold = 0.5, 0.5
    prediction = changed(rows[0]["path"])[0]
    assert prediction.score == pytest.approx(prediction.anomaly_map.max())
    numbers = Detector.load(run, overrides=["calibration.image=0.25", "calibration.pixel=0.5"])
    assert (numbers.threshold, numbers.pixel_threshold) == (0.25, 0.5) and numbers(rows[0]["path"])


def test_scores_with_the_runs_precision(run, detector, rows):
    half = Detector.load(run, device="cpu", overrides=["trainer.precision=bf16-mixed"])
    half.threshold, half.pixel_threshold = detector.threshold, detector.pixel_threshold  # the scores are others
    exact, rough = detector(rows[0]["path"])[0].score, half(rows[0]["path"])[0].score
    assert 1e-7 < abs(rough / exact - 1) < 0.05


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true", "8"])
def test_a_precision_in_which_nothing_is_trained_is_refused(detector, precision):
    with pytest.raises(UserError, match=rf"{precision}.*bf16-mixed"):
        Detector(detector.module, SIZE, precision=precision)


def test_precisions_may_be_abbreviated(detector, rows):
    scores = [
        Detector(detector.module, SIZE, precision=precision)(rows[0]["path"])[0].score
        for precision in (32, "32-true", "bf16", "bf16-mixed")
    ]
    assert scores[0] == scores[1] != scores[2] == scores[3]


@pytest.mark.parametrize("broken", [False, True])
def test_scores_are_computed_as_in_training_and_leave_no_global_changed(detector, rows, monkeypatch, broken):
    seen, score = [], detector.module.score

    def watch(batch):
        seen.append((torch.get_float32_matmul_precision(), torch.is_inference_mode_enabled()))
        if broken:
            raise RuntimeError
        return score(batch)

    monkeypatch.setattr(detector.module, "score", watch)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with pytest.raises(RuntimeError) if broken else nullcontext():
            detector(rows[0]["path"])
        assert seen == [("high", True)] and torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


def test_thresholds_of_a_detector_are_its_own(detector):
    other = Detector(detector.module, SIZE)
    other.threshold = other.pixel_threshold = 7
    assert other.threshold == 7 != detector.threshold and detector.calibration.of(None).source != "given"


def by_pickle(detector):
    return pickle.loads(pickle.dumps(detector))


@pytest.mark.parametrize("duplicate", [deepcopy, by_pickle])
def test_a_copy_predicts_the_same_and_is_its_own(detector, rows, duplicate):
    """Workers of a DataLoader and processes of a pool get a detector by pickle."""
    paths, before = [row["path"] for row in rows], detector.threshold
    copied = duplicate(detector)
    assert [found.score for found in copied(paths)] == [found.score for found in detector(paths)]
    copied.threshold = before + 1
    assert detector.threshold == before and copied(paths[0])[0].threshold == before + 1


def test_loads_for_scoring_only(run, detector):
    assert not isinstance(detector.module, LightningModule) and not detector.module.training
    assert not any(parameter.requires_grad for parameter in detector.module.parameters())
    last = Detector.load(run, ckpt="last", device="cpu")
    assert Detector.load(run, ckpt=run / "checkpoints" / "last.ckpt", device="cpu").threshold == last.threshold


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8)), "float64"),
        (np.zeros((8, 8, 2), np.uint8), r"shape \(8, 8, 2\)"),
        (np.zeros((0, 8), np.uint8), r"shape \(0, 8\)"),
        (torch.zeros(3, 8, 8), "float32"),
    ],
)
def test_bad_images(detector, image, message):
    with pytest.raises(UserError, match=message):
        detector([image])


def test_an_unreadable_file_does_not_fail_the_list(detector, rows, tmp_path):
    good, cut = rows[0]["path"], tmp_path / "cut.png"
    cut.write_bytes(Path(good).read_bytes()[:99])
    answers = detector([cut, good, "nowhere.png", rows[1]["path"], cut, cut, cut])
    assert [one.error is None for one in answers] == [False, True, False, True, False, False, False]
    assert [one.path for one in answers[:3]] == [str(cut), good, "nowhere.png"]
    alone = detector([good, rows[1]["path"]])
    assert [answers[1].score, answers[3].score] == pytest.approx([one.score for one in alone], rel=1e-6)
    for ask in (lambda one: one.score, lambda one: one.anomalous, lambda one: one.boxes):
        with pytest.raises(UserError, match=r"cut\.png"):  # it does not pass for a normal image
            ask(answers[0])
    assert not hasattr(answers[0], "no_such_thing") and pickle.loads(pickle.dumps(answers[0])) == answers[0]
    for image in (str(cut), cut):
        with pytest.raises(UserError, match=r"cut\.png"):
            detector(image)


def test_predictions_as_plain_values(detector, rows):
    answers = detector([rows[0]["path"], "nowhere.png", np.zeros((40, 50), np.uint8)])
    read = json.loads(json.dumps([one.as_dict() for one in answers]))
    assert read[0]["path"] == rows[0]["path"] and read[0]["score"] == answers[0].score
    assert set(read[0]) == {"path", *COLUMNS} and read[0]["anomalous"] is answers[0].anomalous
    assert [tuple(box) for box in read[0]["boxes"]] == answers[0].boxes
    assert read[1]["path"] == "nowhere.png" and "nowhere.png" in read[1]["error"] and set(read[1]) == {"path", "error"}
    assert read[2]["path"] is None


def test_floats_with_a_stated_range(detector, rows):
    array = np.asarray(Image.open(rows[0]["path"]))
    (wanted,) = detector(array)
    grey = np.asarray(Image.open(rows[0]["path"]).convert("L"))
    tensor = torch.tensor(array).permute(2, 0, 1)
    for image, limits in (
        (array / 255, (0, 1)),
        ((array / 127.5 - 1).astype(np.float32), (-1, 1)),
        (tensor / 255, (0, 1)),
        (array.astype(np.float16), (0, 255)),
    ):
        assert detector(image, range=limits)[0].score == pytest.approx(wanted.score, rel=1e-6)
    assert detector([array / 255, array], range=(0, 1))[1].score == pytest.approx(wanted.score, rel=1e-6)  # no float
    floating = Image.fromarray((grey / 255).astype(np.float32))
    assert detector(floating, range=(0, 1))[0].score == pytest.approx(detector(grey)[0].score, rel=1e-6)
    broken = array / 255
    broken[0, 0] = np.nan
    for image, limits, message in (
        (array / 100, (0, 1), r"0.* to 2\..*\(0, 1\)"),
        (array / 255 - 0.1, (0, 1), r"-0\.1"),
        (broken, (0, 1), "nan"),
        (array / 255, (1, 0), r"\(1, 0\)"),
        (tensor / 100, (0, 1), r"\(0, 1\)"),
    ):
        with pytest.raises(UserError, match=message):
            detector(image, range=limits)


def test_bad_arguments(run, tmp_path):
    for arguments, message in (
        ({"run": tmp_path}, str(tmp_path)),
        ({"run": run, "ckpt": "nix"}, "nix"),
        ({"run": run, "device": "cuda:99"}, "device=cuda:99"),
        ({"run": run, "batch_size": 0}, "batch_size.*0"),
    ):
        with pytest.raises(UserError, match=message):
            Detector.load(**arguments)


@pytest.mark.parametrize("image", [None, 5, b"abc", [[1]], [np.zeros((9, 9, 3), np.uint8), 5]], ids=repr)
def test_what_is_no_image(detector, image):
    with pytest.raises(UserError, match="neither a path nor a PIL image"):
        detector(image)


def test_ranges_and_overrides_that_cannot_be_read(run, detector):
    for value in ((0, 1, 2), "ab", "01", 1):
        with pytest.raises(UserError, match=r"range=.* must be two numbers"):
            detector(np.zeros((9, 9, 3)), range=value)
    for overrides in (["model.scorer.reduc=max"], "model.scorer.reduc=max"):
        with pytest.raises(UserError, match=r"'reduc'; did you mean reduce\?"):
            Detector.load(run, device="cpu", overrides=overrides)
    for settings, said in (
        ({"overrides": [3]}, "overrides .* 3"),
        ({"treshold": 1}, "argument 'treshold'"),
        ({"tile": -3}, "tile must"),
        ({"tile": 48, "overlap": 2}, "overlap must"),
        ({"category": 3}, "category .* 3"),
        ({"roi": 5}, "roi .* 5"),
    ):
        with pytest.raises(UserError, match=said):
            Detector.load(run, device="cpu", **settings)
    with pytest.raises(UserError, match="None"):
        Detector.load(None)
    for batch_size in ("4", 0, 1.5):
        with pytest.raises(UserError, match="batch_size must be an integer"):
            Detector.load(run, device="cpu", batch_size=batch_size)


def test_a_run_without_a_region_of_interest_has_no_thresholds_for_one(run, rows, tmp_path):
    """Its border would be an anomaly in every image."""
    Image.fromarray(np.pad(np.full((24, 24), 255, np.uint8), 12)).save(tmp_path / "roi.png")
    detector = Detector.load(run, device="cpu", roi=tmp_path / "roi.png")
    with pytest.raises(UserError, match=r"dataset\.roi"):
        detector(rows[0]["path"])
    detector.threshold = detector.pixel_threshold = -1.0
    assert detector(rows[0]["path"])[0].mask.sum() == 24 * 24


def test_nothing_of_a_training_is_imported(run, rows):
    program = (
        "import sys; from adlight import Detector\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'kornia'} & {*sys.modules}\n"
        "from adlight.runs.exported import check_exists; check_exists(sys.argv[1])\n"  # as `predict` does
        "found = Detector.load(sys.argv[1], device='cpu')(sys.argv[2])[0]\n"
        "print(repr(found.score), *heavy, *({'pytorch_lightning', 'hydra', 'torchmetrics', 'wandb'} & {*sys.modules}))"
    )
    words = [sys.executable, "-c", program, str(run), rows[0]["path"]]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [repr(Detector.load(run, device="cpu")(rows[0]["path"])[0].score)]


def test_threads_may_share_a_detector(detector, rows):
    paths = [row["path"] for row in rows] * 4
    alone = [detector(path)[0] for path in paths[: len(rows)]] * 4
    before = torch.get_float32_matmul_precision()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda path: detector(path)[0], paths))
    for one, other in zip(found, alone, strict=True):
        assert one.score == other.score and one.boxes == other.boxes
        assert np.array_equal(one.anomaly_map, other.anomaly_map)
    assert torch.get_float32_matmul_precision() == before
