"""Methods of calibration by hand, and which thresholds decide for which image."""

import math

import pytest
import torch

from adlight.metrics.histogram import Histogram
from adlight.metrics.methods import Method
from adlight.metrics.pixel import PixelHistogram
from adlight.metrics.thresholds import ALL, Calibration, Threshold
from adlight.types import UserError


def histogram(pixel, mask):
    pixels = PixelHistogram()
    pixels.update(pixel, mask, torch.zeros(len(pixel), dtype=torch.long))
    return pixels.histogram()


@pytest.mark.parametrize(
    ("method", "threshold"),
    [
        (0.5, 0.5),
        ("-3e2", -300.0),
        ("quantile:0.99", 98.01),
        ("quantile:1", 99.0),
        ("sigma:3", 49.5 + 3 * math.sqrt((100**2 - 1) / 12)),
        ("fpr:0.05", 94.0),
        ("fpr:0.29", 70.0),
        ("fpr:0.058", 94.0),
        ("fpr:0", 99.0),
        ("fpr:1", 0.0),
        ("max", 99.0),
    ],
)
def test_image_thresholds_by_hand(method, threshold):
    score = torch.arange(100.0)[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    assert Method.parse(method).of_images(score) == pytest.approx(threshold)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.1, 0.5])
def test_fpr_is_the_smallest_threshold_that_keeps_its_word(share):
    score = (torch.randn(77, generator=torch.Generator().manual_seed(1)) * 3).round()
    threshold = Method.parse(f"fpr:{share}").of_images(score)
    assert (score > threshold).double().mean() <= share
    smaller = score[score < threshold].max()
    assert (score > smaller).double().mean() > share


@pytest.mark.parametrize(
    ("method", "threshold"), [(2.5, 2.5), ("max", 99), ("quantile:0.9", 89), ("fpr:0.1", 89), ("fpr:0", 99)]
)
def test_pixel_thresholds_by_hand(method, threshold):
    pixel = torch.arange(200.0).reshape(1, 10, 20)
    assert Method.parse(method).of_pixels(histogram(pixel, pixel >= 100)) == threshold


def test_sigma_of_pixels_is_mean_and_deviation_of_the_normal_ones():
    g = torch.Generator().manual_seed(0)
    mask = torch.rand(4, 20, 20, generator=g) < 0.2
    pixel = torch.randn(4, 20, 20, generator=g) + 50 * (torch.rand(4, 20, 20, generator=g) < 0.5)
    normal = pixel[~mask].double()
    expected = (normal.mean() + 3 * normal.std(correction=0)).item()
    assert Method.parse("sigma:3").of_pixels(histogram(pixel, mask)) == pytest.approx(expected)


@pytest.mark.parametrize("method", ["max", "sigma:3", "quantile:0.5"])
def test_pixel_thresholds_need_normal_pixels(method):
    nothing = Histogram(torch.zeros(1), torch.zeros(1), torch.tensor([[0], [4]]), torch.zeros(1))
    with pytest.raises(ValueError, match="no normal pixels"):
        Method.parse(method).of_pixels(nothing)


@pytest.mark.parametrize(
    "method", ["quantile", "quantile:2", "fpr:-1", "best", "sigma:x", "nan", "max:1", "number:3", True]
)
def test_methods_that_make_no_sense_are_named(method):
    for settings in ({"image": method}, {"pixel": method}):
        with pytest.raises(ValueError, match=rf"{method}.*quantile:0\.99.*sigma:3.*fpr:0\.05.*max"):
            Calibration(**settings)


def test_an_unknown_grouping_is_named():
    with pytest.raises(ValueError, match=r"per 'image'"):
        Calibration(per="image")


def fit(score, category, names=("a", "b"), **settings):
    """Calibrate on images whose pixels all have twice their score, and whose peak is said to be three times that."""
    calibration = Calibration(**({"image": "max", "pixel": "max"} | settings))
    score, category = torch.tensor(score, dtype=torch.float64), torch.tensor(category)
    pixels = PixelHistogram(len(names))
    if len(score):
        pixel = (score[:, None, None] * 2).float().expand(-1, 3, 3)
        pixels.update(pixel.nan_to_num(), torch.zeros(len(score), 3, 3, dtype=torch.bool), category)
    calibration.fit(score, 3 * score, category, pixels, names)
    return calibration


def test_thresholds_of_each_category_and_of_all():
    found = fit([1.0, 2.0, 100.0], [0, 0, 1])
    assert found.pooled == Threshold(100, 200, 3, ALL, 300)
    assert found.categories == {"a": Threshold(2, 4, 2, "a", 6), "b": Threshold(100, 200, 1, "b", 300)}
    assert found.of("a").image == 2 and found.of("nut") == found.of(None) == found.pooled
    together = fit([1.0, 2.0, 100.0], [0, 0, 1], per="all")
    assert together.of("a") == found.pooled and together.categories == found.categories and not together.by_category


def test_no_more_normal_images_show_a_region_than_are_anomalous():
    score, peak = torch.rand(2, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    calibration, zeros = Calibration("fpr:0.05", 1), torch.zeros(100, dtype=torch.long)
    calibration.fit(score, peak, zeros, PixelHistogram(), ["a"])
    assert calibration.of("a").region is None  # a pixel threshold that is given decides alone
    calibration = Calibration("fpr:0.05", "max")
    pixels = PixelHistogram()
    pixels.update(peak[:, None, None].float(), torch.zeros(100, 1, 1, dtype=torch.bool), zeros)
    calibration.fit(score, peak, zeros, pixels, ["a"])
    assert int((peak > calibration.of("a").region).sum()) == int((score > calibration.of("a").image).sum()) == 5


def test_a_category_without_normal_images_has_the_pooled_threshold():
    found = fit([1.0, 2.0], [1, 1])
    assert list(found.categories) == ["b"] and found.of("a") == found.pooled


def test_a_number_holds_for_every_category():
    found = fit([1.0, 2.0], [0, 1], image=0.25, pixel="0.5")
    assert {(one.image, one.pixel) for one in (found.pooled, *found.categories.values())} == {(0.25, 0.5)}


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_a_number_needs_no_scores():
    found = fit([], [], image=0.25, pixel=0.5)
    assert found.of("a")[:2] == Calibration(0.25, 0.5).of("a")[:2] == (0.25, 0.5)
    for settings in ({}, {"image": 0.25}, {"pixel": 0.5}):
        with pytest.raises(UserError, match="limit_val_batches"):
            fit([], [], **settings)


def test_a_single_image_and_one_that_is_not_finite():
    assert fit([7.0], [0], image="sigma:3").pooled.image == 7
    with pytest.raises(ValueError, match=r"\[1\]"):
        fit([0.0, math.nan], [0, 0])


def test_nothing_fitted():
    assert math.isnan(Calibration().of("a").image) and not Calibration().is_fitted
    assert not Calibration(image=0.5).is_fitted and Calibration(0.5, 0.5).is_fitted
    found = fit([1.0], [0])
    found.reset()
    assert not found.is_fitted and not found.categories


def test_state_comes_back_and_is_plain():
    found, other = fit([1.0, 2.0, 100.0], [0, 0, 1]), Calibration(image=0.5)
    state = found.state_dict()
    assert type(state["pooled"]) is dict and type(state["categories"]["a"]) is dict  # loads with weights_only=True
    other.load_state_dict(state)
    assert other.of("a") == found.of("a")._replace(image=0.5, region=None)  # a number holds whatever was found
    other.pixel = Method.parse(9)
    assert other.of("a") == Threshold(0.5, 9, 2, "given")
    other = Calibration()
    other.load_state_dict(state)
    assert other.state_dict() == state


def test_description_names_values_method_and_images():
    found = fit([1.0, 2.0, 100.0], [0, 0, 1], ("a", "b", "c"))
    each = found.describe(["a", "b", "c"])
    assert all(part in each for part in ("max", "a 2 (of 2)", "b 100 (of 1)", f"c 100 (of 3 of {ALL})"))
    assert all(part in found.describe(["b"]) for part in ("100", "max", "1 held-out", "of b"))
    together = fit([1.0, 2.0, 100.0], [0, 0, 1], per="all").describe(["a", "b"])
    assert "100" in together and f"3 held-out normal images of {ALL}" in together
    assert "0.25" in Calibration(image=0.25).describe(["a"])


def test_the_result_file_holds_methods_and_thresholds():
    found = fit([1.0, 2.0], [0, 0], image="quantile:0.5").as_dict()
    assert (found["threshold_method"], found["pixel_threshold_method"]) == ("quantile:0.5", "max")
    assert (found["threshold"], found["pixel_threshold"], found["region_threshold"]) == (1.5, 4, 4.5)
    one = {"image": 1.5, "pixel": 4, "num_normals": 2, "source": "a", "region": 4.5}
    assert found["thresholds"] == {"a": one} and found["threshold_per"] == "category"
