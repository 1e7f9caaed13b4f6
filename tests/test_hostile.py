"""Test sets that break careless metrics, through the whole path: loader, module, Trainer, files and printed table."""

import csv
import json
from typing import NamedTuple

import numpy as np
import pytest
import pytorch_lightning as pl
from PIL import Image
from sklearn import metrics as reference

from adlight.data.datamodule import AnomalyDataModule
from adlight.data.source import Source
from adlight.detection.module import AnomalyModule
from adlight.metrics.thresholds import Calibration
from adlight.reports.tables import print_defects, print_results
from adlight.runs.folder import RunFolder
from adlight.train import footnotes
from adlight.types import Record, UserError

SIZE = 32


class Shown(NamedTuple):
    """A test image: one level of grey, another where `mask` says that it is defective."""

    label: int
    level: int
    category: str = "a"
    mask: str = "square"
    spot: int | None = None  # level inside the mask; None = the same


MASKS = {
    "square": np.s_[8:16, 8:16],
    "one pixel": np.s_[5:6, 7:8],
    "border": np.s_[:, 0:2],
    "corners": ([0, 0, -1, -1], [0, -1, 0, -1]),
    "everything": np.s_[:, :],
}


def mask_of(name):
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[MASKS[name]] = 255
    return mask


class Made(Source):
    """Normal training images of a few levels a category, and the test images given."""

    def __init__(self, shown, categories=("a",)):
        self.shown, self.categories = shown, categories

    def train(self):
        return [Record(f"train/{c}/{i}", c) for c in self.categories for i in range(10)]

    def test(self):
        return [
            Record(f"test/{i}", s.category, "bad" if s.label else "good", s.label, s.mask if s.label else None)
            for i, s in enumerate(self.shown)
        ]

    def read(self, record):
        split, *_, number = record.path.split("/")
        if split == "train":
            return Image.fromarray(np.full((SIZE, SIZE), 10 + int(number), np.uint8))
        shown = self.shown[int(number)]
        image = np.full((SIZE, SIZE), shown.level, np.uint8)
        if shown.label and shown.spot is not None:
            image[MASKS[shown.mask]] = shown.spot
        return Image.fromarray(image)

    def read_mask(self, record, size):
        return None if record.mask is None else Image.fromarray(mask_of(record.mask))


class Grey(AnomalyModule):
    """The brighter, the more anomalous: the score of a pixel is `offset + scale * grey level`, of an image the mean."""

    def __init__(self, scale=1.0, offset=0.0, **settings):
        super().__init__(**settings)
        self.scale, self.offset = scale, offset

    def score(self, batch):
        pixel = self.offset + self.scale * (batch["image"] * 255).round().mean(1)  # (B, H, W)
        return {"image": pixel.double().mean((1, 2)), "pixel": pixel, "reconstruction": batch["image"]}


def strict(path):
    """JSON without NaN or infinity."""
    return json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} in {path.name}"))


def results_of(folder, capsys, shown, module=None, categories=("a",)):
    """Validate and test. -> metrics.json, the rows of predictions.csv, what was printed, and the module."""
    module = module or Grey()
    data = AnomalyDataModule(lambda: Made(shown, categories), image_size=SIZE, channels=1, eval_batch_size=3)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_epochs=1
    )
    trainer.validate(module, data, verbose=False)
    trainer.test(module, data, verbose=False)
    RunFolder(folder).write_results(module, data.records("test"), {})
    thresholds = module.calibration.describe(list(module.results.categories))
    print_results(module.results, thresholds, footnotes(RunFolder(folder), module, data))
    print_defects(module.results)
    out = capsys.readouterr().out
    assert "nan" not in out.lower() and "inf" not in out.lower()
    with (folder / "predictions.csv").open(newline="") as file:
        return strict(folder / "metrics.json"), list(csv.DictReader(file)), out, module


def expected(rows):
    label, score = (np.array([float(row[key]) for row in rows]) for key in ("label", "score"))
    precision, recall, _ = reference.precision_recall_curve(label, score)
    return {
        "auroc": reference.roc_auc_score(label, score),
        "ap": reference.average_precision_score(label, score),
        "f1_max": (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max(),
    }


def assert_right(found, rows):
    for key, value in expected(rows).items():
        assert found[key] == pytest.approx(value, abs=1e-9), key
        assert 0 <= found[f"{key}_lower"] <= found[f"{key}_upper"] <= 1


MIXED = [Shown(i % 2, 20 + 3 * i + 10 * (i % 2), spot=200 - i) for i in range(11)]


@pytest.mark.parametrize("scale, offset", [(1.0, 0.0), (1.0, 1e6), (-1.0, -1e6), (1e30, 0.0), (1e-30, 0.0)])
def test_any_scale_of_scores(tmp_path, capsys, scale, offset):
    found, rows, _, module = results_of(tmp_path, capsys, MIXED, Grey(scale, offset))
    assert_right(found, rows)
    pixel = np.concatenate(
        [offset + scale * np.asarray(Made(MIXED).read(Record(f"test/{i}", "a")), float) for i in range(11)]
    )
    truth = np.concatenate([mask_of(s.mask) * s.label > 0 for s in MIXED])
    assert found["pixel_auroc"] == pytest.approx(reference.roc_auc_score(truth.ravel(), pixel.ravel()), abs=1e-6)
    assert found["pixel_ap"] == pytest.approx(reference.average_precision_score(truth.ravel(), pixel.ravel()), abs=1e-6)
    assert found["categories"]["a"]["threshold"] == module.calibration.of("a").image


def test_all_scores_equal(tmp_path, capsys):
    found, rows, out, _ = results_of(tmp_path, capsys, [Shown(int(i > 2), 50) for i in range(7)])
    assert_right(found, rows)
    assert (found["auroc"], found["auroc_lower"], found["auroc_upper"], found["pixel_auroc"]) == (0.5,) * 4
    assert found["aupro"] == pytest.approx(0.15) and found["f1_max"] == found["trivial_f1"] == pytest.approx(8 / 11)
    assert " 0.500 " in out and "± 0.000" not in out


def test_one_anomaly(tmp_path, capsys):
    shown = [Shown(0, 20 + i) for i in range(6)] + [Shown(1, 23, mask="one pixel", spot=255)]
    found, rows, _, _ = results_of(tmp_path, capsys, shown)
    assert_right(found, rows)
    assert found["categories"]["a"]["anomalous"] == 1 and found["aupro"] == found["pixel_auroc"] == 1
    assert found["defects"]["a"]["bad"]["auroc"] == found["auroc"] and len(rows) == 7


def test_each_image_twice_changes_no_metric(tmp_path, capsys):
    once, _, _, _ = results_of(tmp_path / "1", capsys, MIXED)
    twice, rows, _, _ = results_of(tmp_path / "2", capsys, MIXED + MIXED)
    assert len(rows) == 22 and len({row["path"] for row in rows}) == 22
    for key in ("auroc", "ap", "f1_max", "pixel_auroc", "pixel_ap", "aupro", "pixel_iou_calibrated", "f1_calibrated"):
        assert twice[key] == pytest.approx(once[key], abs=1e-12), key
    assert twice["auroc_upper"] - twice["auroc_lower"] < once["auroc_upper"] - once["auroc_lower"]


def test_a_category_without_test_images_and_one_without_normal_ones(tmp_path, capsys):
    """`empty` is trained on and never tested; `c` has anomalies only; `new` was never trained on."""
    shown = [*MIXED, Shown(1, 90, "c"), Shown(1, 91, "c"), Shown(0, 15, "new"), Shown(1, 99, "new")]
    found, rows, out, _ = results_of(tmp_path, capsys, shown, categories=("a", "c", "empty"))
    assert set(found["categories"]) == {"a", "c", "new"} and set(found["thresholds"]) == {"a", "c", "empty"}
    assert "auroc" not in found["categories"]["c"] and found["left_out"]["c/auroc"] == "no normal images"
    assert found["categories"]["c"]["recall_calibrated"] == 1
    assert found["auroc"] == pytest.approx(
        (found["categories"]["a"]["auroc"] + found["categories"]["new"]["auroc"]) / 2
    )
    assert_right(found["categories"]["a"], [row for row in rows if row["category"] == "a"])
    assert_right(found["pooled"], rows)
    assert "that of all categories is used" in found["left_out"]["new/threshold"]
    assert {row["category"]: row["threshold_source"] for row in rows} == {"a": "a", "c": "c", "new": "all categories"}
    assert found["categories"]["new"]["threshold"] == found["threshold"]
    assert "of all categories" in out and " - " in out


@pytest.mark.parametrize("mask", MASKS)
def test_masks_of_any_kind(tmp_path, capsys, mask):
    shown = [Shown(0, 20), Shown(0, 21), Shown(1, 22, mask=mask, spot=250), Shown(1, 19, mask=mask, spot=240)]
    found, _, _, _ = results_of(tmp_path, capsys, shown)
    assert found["pixel_auroc"] == found["pixel_ap"] == found["pixel_f1_max"] == found["aupro"] == 1
    assert 0 < found["pixel_iou_calibrated"] <= 1


def test_nothing_but_defective_pixels(tmp_path, capsys):
    found, _, _, _ = results_of(tmp_path, capsys, [Shown(1, 30, mask="everything"), Shown(1, 40, mask="everything")])
    assert "pixel_auroc" not in found and found["left_out"]["a/pixel_auroc"] == "no normal pixels"
    assert found["left_out"]["a/auroc"] == "no normal images" and found["pixel_iou_calibrated"] == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["image", "pixel"])
def test_a_score_that_is_no_number_names_its_image(tmp_path, capsys, bad, where):
    class Broken(Grey):
        def score(self, batch):
            scores = super().score(batch)
            scores[where][batch["image"].amax((1, 2, 3)) * 255 > 250] = bad
            return scores

    shown = [Shown(0, 20), Shown(1, 20, spot=255), Shown(0, 21), Shown(0, 22)]
    with pytest.raises(UserError, match=r"1 image.*test/1$"):
        results_of(tmp_path, capsys, shown, Broken())


def test_categories_of_different_scale_are_judged_each_by_its_own_threshold(tmp_path, capsys):
    """`b` is 100 levels brighter: one threshold for both calls all of `b` anomalous, or finds nothing in `a`."""

    class Raised(Grey):
        def score(self, batch):
            scores = super().score(batch)
            for key in ("image", "pixel"):
                shift = 100.0 * (batch["category"] == 1)
                scores[key] = scores[key] + (shift if key == "image" else shift[:, None, None])
            return scores

    def calibrated(per):
        module = Raised()
        module.calibration = Calibration("max", per=per)
        return module

    shown = [Shown(i % 2, 10 - i % 3 + 30 * (i % 2), c) for c in "ab" for i in range(8)]
    own, rows, _, module = results_of(tmp_path / "own", capsys, shown, calibrated("category"), ("a", "b"))
    assert own["threshold_per"] == "category"
    tables = [own["categories"]["a"], own["categories"]["b"], own, own["pooled"]]
    assert [found["f1_calibrated"] for found in tables] == [1, 1, 1, 1]
    assert own["categories"]["b"]["threshold"] == pytest.approx(own["categories"]["a"]["threshold"] + 100, abs=15)
    assert module.calibration.of("b").pixel > 100 > module.calibration.of("a").pixel
    assert {float(row["area"]) for row in rows if row["label"] == "0"} == {0.0}
    shared, rows, out, module = results_of(tmp_path / "all", capsys, shown, calibrated("all"), ("a", "b"))
    assert shared["categories"]["a"]["recall_calibrated"] == 0 and shared["categories"]["b"]["f1_calibrated"] == 1
    assert {row["threshold_source"] for row in rows} == {"all categories"} and "images of all categories" in out
    assert shared["thresholds"] == own["thresholds"] and shared["auroc"] == own["auroc"]
    tp, fp, missed = 0, 0, 0  # IoU of everything, each pixel at its category's threshold
    for s in shown:
        level = s.level + (100 if s.category == "b" else 0)
        flagged = np.full((SIZE, SIZE), level > own["categories"][s.category]["pixel_threshold"])
        truth = (mask_of(s.mask) > 0) & bool(s.label)
        tp, fp, missed = tp + (flagged & truth).sum(), fp + (flagged & ~truth).sum(), missed + (~flagged & truth).sum()
    assert own["pooled"]["pixel_iou_calibrated"] == pytest.approx(tp / (tp + fp + missed))
