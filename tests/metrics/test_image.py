import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from adlight.metrics.image import (
    CALIBRATED,
    RANKING,
    auroc,
    count_confusion,
    image_metrics,
    roc_curve,
)


def average_precision(score, label):
    return count_confusion(score, label)[1].average_precision().item()


def fpr_at_tpr(score, label):
    return count_confusion(score, label)[1].fpr_at_tpr(0.95).item()


def ranking(score, label):
    thresholds, counts = count_confusion(score, label)
    return counts.ranking(thresholds)


def at_threshold(score, label, threshold):
    """Precision, recall, F1, FPR."""
    found, _ = image_metrics(score, label, threshold)
    return tuple(found.get(name) for name in CALIBRATED)


def cases():
    g = torch.Generator().manual_seed(0)
    label = (torch.rand(500, generator=g) < 0.3).long()
    score = torch.randn(500, generator=g, dtype=torch.float64) + label
    one = torch.zeros(500, dtype=torch.long)
    one[17] = 1
    twice = torch.cat([score, score]), torch.cat([label, label])
    return {
        "random": (score, label),
        "tied": ((2 * score).round(), label),
        "all equal": (torch.full_like(score, 3.0), label),
        "one anomalous": (score, one),
        "one anomalous among ties": (score.round(), one),
        "one normal": (score, 1 - one),
        "near 1e6": ((1e6 + score).float(), label),
        "huge": (1e300 * score, label),
        "tiny": (1e-300 * score, label),
        "negative": (score - 50, label),
        "duplicated images": twice,
        "perfect": (label.double(), label),
        "wrong way round": (-label.double(), label),
        "two images": (torch.tensor([0.0, 1.0]), torch.tensor([0, 1])),
    }


@pytest.mark.parametrize("name", cases())
def test_equal_to_scikit_learn(name):
    score, label = cases()[name]
    s, y = score.double().numpy(), label.numpy()
    assert auroc(score, label) == pytest.approx(sk.roc_auc_score(y, s), abs=1e-9)
    assert average_precision(score, label) == pytest.approx(sk.average_precision_score(y, s), abs=1e-9)
    precision, recall, _ = sk.precision_recall_curve(y, s)
    f1 = 2 * precision * recall / (precision + recall).clip(1e-300)
    assert ranking(score, label)["f1_max"] == pytest.approx(f1.max(), abs=1e-9)
    fpr, tpr, _ = sk.roc_curve(y, s, drop_intermediate=False)
    assert fpr_at_tpr(score, label) == pytest.approx(fpr[tpr >= 0.95].min(), abs=1e-9)


@pytest.mark.parametrize("name", cases())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_f1_max_is_what_its_threshold_gives(name, dtype):
    score, label = cases()[name]
    score = score.to(dtype)
    if not score.isfinite().all():
        pytest.skip("1e300 is infinite in float32")
    best = ranking(score, label)
    precision, recall, f1, _ = at_threshold(score, label, best["f1_max_threshold"])
    assert (best["precision_at_f1_max"], best["recall_at_f1_max"]) == pytest.approx((precision, recall))
    assert best["f1_max"] == pytest.approx(f1)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_at_threshold_equals_scikit_learn(share):
    score, label = cases()["tied"]
    threshold = score.quantile(share).item()
    y, flagged = label.numpy(), (score > threshold).numpy()
    precision = sk.precision_score(y, flagged, zero_division=0)
    expected = precision, sk.recall_score(y, flagged), sk.f1_score(y, flagged), flagged[y == 0].mean()
    assert at_threshold(score, label, threshold) == pytest.approx(expected)


def test_by_hand():
    score, label = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([1, 0, 1, 0])
    assert auroc(score, label) == 3 / 4  # of four pairs, only (2, 3) is the wrong way round
    assert average_precision(score, label) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    best = [ranking(score, label)[name] for name in RANKING if "f1_max" in name]
    assert best == pytest.approx([4 / 5, 1.0, 2 / 3, 1.0])
    assert fpr_at_tpr(score, label) == 0.5
    assert image_metrics(score, label, None)[0]["trivial_f1"] == pytest.approx(2 / 3)
    assert at_threshold(score, label, 3.0) == pytest.approx((1, 1 / 2, 2 / 3, 0))  # 3 itself is not above 3


def test_each_image_may_have_its_own_threshold():
    score, label = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([1, 0, 1, 0])
    own = torch.tensor([4.0, 2.5, 1.5, 1.0], dtype=torch.float64)
    assert at_threshold(score, label, own) == pytest.approx((1 / 2, 1 / 2, 1 / 2, 1 / 2))
    assert at_threshold(score, label, torch.full((4,), 3.0).double()) == at_threshold(score, label, 3.0)
    with pytest.raises(ValueError, match="threshold"):
        at_threshold(score, label, torch.tensor([1.0, math.nan, 1.0, 1.0]))


def test_scores_outside_0_and_1_are_not_squashed():
    score = torch.tensor([50.0, 51, 60, 61])  # torchmetrics' sigmoid makes these one tie, 0.5
    assert auroc(score, torch.tensor([0, 0, 1, 1])) == 1


@pytest.mark.parametrize("name", ["random", "tied"])
def test_only_the_order_of_scores_matters(name):
    score, label = cases()[name]
    turn = torch.randperm(len(score), generator=torch.Generator().manual_seed(1))
    moved, same = (score.double() / 3).exp() * 100 - 7, label[turn]
    for metric in (auroc, average_precision, fpr_at_tpr):
        assert metric(moved[turn], same) == pytest.approx(metric(score, label), abs=1e-12)
    assert auroc(-score, label) == pytest.approx(1 - auroc(score, label))


def test_not_finite_scores_are_named_by_position():
    score = torch.tensor([0.0, math.nan, 1.0, math.inf])
    with pytest.raises(ValueError, match=r"\[1, 3\]"):
        image_metrics(score, torch.tensor([0, 1, 0, 1]), 0.5)


@pytest.mark.parametrize("label", [[0, 0], [1, 1], [0, 2], [0, 1, 1]])
def test_labels_that_cannot_be_ranked_are_refused(label):
    with pytest.raises(ValueError, match=r"no anomalous|no normal|0 or 1|equal length"):
        auroc(torch.tensor([0.0, 1.0]), torch.tensor(label))


def test_image_metrics_of_both_classes():
    score, label = cases()["random"]
    values, reasons = image_metrics(score, label, 0.5)
    assert tuple(values) == (*RANKING, "trivial_f1", *CALIBRATED)
    assert reasons == {}
    assert values["auroc"] == auroc(score, label)
    assert {name: values[name] for name in RANKING} == ranking(score, label)
    assert values["trivial_f1"] == pytest.approx(sk.f1_score(label, torch.ones_like(label)))


@pytest.mark.parametrize(
    ("label", "left", "reason"),
    [
        ([0, 0, 0], {"fpr_calibrated": 1 / 3}, "no anomalous images"),
        ([1, 1, 1], {"recall_calibrated": 1 / 3}, "no normal images"),
        ([], {}, "no images"),
    ],
)
def test_what_cannot_be_computed_is_left_out_with_a_word_why(label, left, reason):
    score = torch.tensor([1.0, 2.0, 3.0])[: len(label)]
    values, reasons = image_metrics(score, torch.tensor(label), 2.0)
    assert values == pytest.approx(left)
    assert reasons == {key: reason for key in (*RANKING, "trivial_f1", *CALIBRATED) if key not in left}


def test_without_threshold_the_calibrated_metrics_are_left_out():
    values, reasons = image_metrics(*cases()["random"], None)
    assert tuple(values) == (*RANKING, "trivial_f1")
    assert reasons == dict.fromkeys(CALIBRATED, "no calibrated threshold")


def test_a_threshold_that_was_never_calibrated_is_refused():
    with pytest.raises(ValueError, match="threshold"):
        image_metrics(*cases()["random"], math.nan)


@pytest.mark.parametrize("decimals", [0, 1, 8])  # many ties, few, none
def test_roc_points_are_scikit_learns(decimals):
    generator = np.random.default_rng(1)
    label = generator.integers(0, 2, 200)
    score = np.round(generator.normal(label, 1.0), decimals)
    fpr, tpr, _ = sk.roc_curve(label, score, drop_intermediate=False)
    mine = [rate.numpy() for rate in roc_curve(torch.tensor(score), torch.tensor(label))]
    np.testing.assert_allclose(mine, (fpr, tpr), atol=1e-12)
    assert sk.auc(*mine) == pytest.approx(sk.auc(fpr, tpr), abs=1e-12)
