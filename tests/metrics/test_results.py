"""The numbers of a test from scores, thresholds and pixel histograms."""

import math

import pytest
import torch
from sklearn import metrics as sk

from adlight.metrics.bootstrap import bootstrap
from adlight.metrics.pixel import PixelHistogram
from adlight.metrics.results import summarize
from adlight.metrics.thresholds import Calibration, Threshold
from adlight.types import Record, UserError


def fitted(pooled, **categories):
    calibration = Calibration()
    calibration.pooled, calibration.categories = pooled, categories
    return calibration


def make(counts, calibration=None):
    """Results of `{category: (normal, {defect: images})}` with random scores, and those scores by category."""
    records = [
        Record(f"{category}/{defect}/{i}", category, defect, int(defect != "good"), "m" if defect != "good" else None)
        for category, (normal, defects) in counts.items()
        for defect, many in [("good", normal), *defects.items()]
        for i in range(many)
    ]
    label = torch.tensor([r.label for r in records])
    g = {category: torch.Generator().manual_seed(ord(category)) for category in counts}
    score = label + torch.cat([torch.randn(1, generator=g[r.category], dtype=torch.float64) for r in records])
    pixel = score[:, None, None].float() + torch.stack([torch.rand(4, 4, generator=g[r.category]) for r in records])
    mask = torch.zeros(len(records), 4, 4, dtype=torch.bool)
    mask[label == 1, 1:3, 1:3] = True
    names = list(counts)
    pixels = PixelHistogram(len(names))
    pixels.update(pixel, mask, torch.tensor([names.index(r.category) for r in records]))
    calibration = calibration or Calibration(0.5, 0.5, per="all")
    return summarize(records, score, calibration, pixels, names), records, score


COUNTS = {"a": (9, {"hole": 5, "cut": 4}), "b": (7, {"hole": 3})}


def test_mean_and_its_interval_come_from_the_categories():
    results, records, score = make(COUNTS)
    label = torch.tensor([r.label for r in records])
    draws = {}
    for name in "ab":
        mine = torch.tensor([r.category == name for r in records])
        assert results.categories[name]["auroc"] == pytest.approx(sk.roc_auc_score(label[mine], score[mine]))
        draws[name] = bootstrap(score[mine], label[mine], seed=99)["auroc"]
    assert results.mean["auroc"] == pytest.approx(
        (results.categories["a"]["auroc"] + results.categories["b"]["auroc"]) / 2
    )
    assert "threshold" not in results.mean and "normal" not in results.mean
    width = (results.mean["auroc_upper"] - results.mean["auroc_lower"]) / 2
    # two independent draws: variances add up; equal draws in both would make it wider
    assert width == pytest.approx(1.96 * math.hypot(*(float(d.std()) for d in draws.values())) / 2, rel=0.15)
    for table in (results.mean, results.pooled, *results.categories.values()):
        for key in ("auroc", "ap", "f1_max"):
            assert 0 <= table[f"{key}_lower"] < table[f"{key}_upper"] <= 1


def test_one_category_alone_is_its_own_mean_and_pool():
    results, _, _ = make({"a": COUNTS["a"]})
    ends = [f"{key}{end}" for key in ("auroc", "ap", "f1_max") for end in ("", "_lower", "_upper")]
    for key in ends:
        assert results.mean[key] == results.pooled[key] == results.categories["a"][key]


def test_a_category_s_interval_is_its_own():
    """Neither other categories nor their order change it."""
    together, alone = make(COUNTS)[0], make({"a": COUNTS["a"]})[0]
    assert together.categories["a"] == alone.categories["a"]


def test_each_defect_type_against_all_normal_images():
    results, records, score = make(COUNTS)
    assert {name: list(found) for name, found in results.defects.items()} == {"a": ["cut", "hole"], "b": ["hole"]}
    for category, defects in results.defects.items():
        for defect, found in defects.items():
            mine = [i for i, r in enumerate(records) if r.category == category and r.defect in ("good", defect)]
            label, own = [records[i].label for i in mine], score[mine]
            assert (found["normal"], found["anomalous"]) == (len(mine) - sum(label), sum(label))
            assert found["auroc"] == pytest.approx(sk.roc_auc_score(label, own))
            assert found["ap"] == pytest.approx(sk.average_precision_score(label, own))
            assert found["recall_calibrated"] == pytest.approx(sk.recall_score(label, own > 0.5))
    assert results.as_dict()["defects"] == results.defects


def test_no_normal_images_leave_recall_alone():
    found = make({"a": (0, {"hole": 3})})[0].defects["a"]["hole"]
    assert set(found) == {"normal", "anomalous", "recall_calibrated"}


def test_each_category_is_judged_by_its_own_thresholds():
    own = fitted(Threshold(9.0, 9.0), a=Threshold(-9.0, -9.0, 1, "a"))
    results, _, _ = make(COUNTS, own)
    assert results.categories["a"]["recall_calibrated"] == 1 and results.categories["b"]["recall_calibrated"] == 0
    assert results.pooled["recall_calibrated"] == 9 / 12 and results.pooled["fpr_calibrated"] == 9 / 16
    assert results.pooled["pixel_iou_calibrated"] == 9 * 4 / (18 * 16 + 3 * 4)  # all of a's pixels, none of b's
    assert results.categories["a"]["threshold"] == -9 and results.categories["b"]["pixel_threshold"] == 9
    assert set(results.left_out) == {"b/threshold"}


def test_nothing_calibrated():
    results, _, _ = make(COUNTS, Calibration())
    assert "threshold" not in results.categories["a"] and "pixel_iou_calibrated" not in results.pooled
    assert (
        results.left_out["a/recall_calibrated"]
        == results.left_out["pooled/pixel_iou_calibrated"]
        == ("no calibrated threshold")
    )


def test_not_finite_scores_name_their_images():
    record = Record("x.png", "a")
    with pytest.raises(UserError, match=r"1 image.* x\.png"):
        summarize([record], torch.tensor([math.inf]), Calibration(), PixelHistogram(), ["a"])
