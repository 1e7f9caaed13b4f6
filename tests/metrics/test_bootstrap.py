"""Intervals of the image metrics: against resampling one by one, and what is known beforehand."""

import pytest
import torch

from adlight.metrics.bootstrap import bootstrap, interval
from adlight.metrics.image import image_metrics


def made(count=500, seed=0, shift=1.0):
    g = torch.Generator().manual_seed(seed)
    label = (torch.rand(count, generator=g) < 0.3).long()
    return torch.randn(count, generator=g, dtype=torch.float64) + shift * label, label


def width(ends, name="auroc"):
    return ends[f"{name}_upper"] - ends[f"{name}_lower"]


@pytest.mark.parametrize("strata", [1, 3])
def test_agrees_with_resampling_one_by_one(strata):
    score, label = made()
    score = (2 * score).round()  # ties
    stratum = torch.arange(500) % strata
    score = score + 3 * stratum  # categories whose scores differ in scale
    found = bootstrap(score, label, stratum, seed=1)
    drawn, g = [], torch.Generator().manual_seed(2)
    sets = [((label == c) & (stratum == s)).nonzero().flatten() for c in (0, 1) for s in range(strata)]
    for _ in range(300):
        picks = torch.cat([images[torch.randint(len(images), (len(images),), generator=g)] for images in sets])
        s, y = score[picks], label[picks]
        metrics, _ = image_metrics(s, y, None)
        drawn.append([metrics[name] for name in found])
    naive = torch.tensor(drawn, dtype=torch.float64)
    assert list(found) == ["auroc", "ap", "f1_max"]
    for values, expected in zip(found.values(), naive.T, strict=True):
        assert values.shape == (1000,)
        assert float(values.mean()) == pytest.approx(float(expected.mean()), abs=0.004)
        assert float(values.std()) == pytest.approx(float(expected.std()), rel=0.2)


def test_interval_holds_the_middle_95_percent():
    ends = interval({"auroc": torch.arange(1001).double() / 1000})
    assert ends == pytest.approx({"auroc_lower": 0.025, "auroc_upper": 0.975})


def test_is_seeded_and_knows_certainty():
    score, label = made()
    first, again, other = (interval(bootstrap(score, label, seed=seed, resamples=100)) for seed in (3, 3, 4))
    assert first == again != other
    certain = interval(bootstrap(label.double(), label, resamples=100))
    assert set(certain.values()) == {1.0}
    with pytest.raises(ValueError, match="no anomalous"):
        bootstrap(score, 0 * label)


def test_of_a_single_anomalous_image_only_the_normal_ones_vary():
    score, label = torch.arange(20.0), torch.zeros(20, dtype=torch.long)
    label[10] = 1
    found = bootstrap(score, label)["auroc"]
    assert 0 < float(found.std()) < 0.2 and float(found.mean()) == pytest.approx(10 / 19, abs=0.02)


def test_shrinks_with_the_root_of_the_number_of_images():
    score, label = made()
    few, many = (interval(bootstrap(score.repeat(n), label.repeat(n))) for n in (1, 4))
    assert width(few) / width(many) == pytest.approx(2, rel=0.15)


def test_covers_the_true_value_about_95_times_in_100():
    true = 0.5 * (1 + torch.erf(torch.tensor(0.5)).item())  # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt(2))
    inside = 0
    for seed in range(60):
        ends = interval(bootstrap(*made(120, seed + 10), resamples=200))
        inside += ends["auroc_lower"] <= true <= ends["auroc_upper"]
    assert inside >= 51  # 60 * 0.95 = 57; below 51 by chance in 1 of 100 cases, and the draws are seeded


def test_ten_thousand_images_at_chance_level():
    g = torch.Generator().manual_seed(5)
    score, label = torch.randn(10_000, generator=g), torch.arange(10_000) % 2
    ends = interval(bootstrap(score, label, resamples=300))  # a loop over resamples would take a minute
    assert 0.018 < width(ends) < 0.026  # 2 * 1.96 * sqrt(1 / (12 * 2500))
