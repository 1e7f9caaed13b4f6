"""Methods of calibration by hand, and which thresholds decide for which image."""

import math
from decimal import Decimal
from fractions import Fraction

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
        ("quantile:0.99", 99.0),
        ("quantile:0.95", 95.0),
        ("quantile:1", 99.0),
        ("sigma:3", 49.5 + 3 * math.sqrt((100**2 - 1) / 12)),
        ("fpr:0.05", 95.0),
        ("fpr:0.29", 71.0),
        ("fpr:0.058", 95.0),
        ("fpr:0.0099", 99.0),
        ("fpr:0", 99.0),
        ("fpr:1", 0.0),
        ("max", 99.0),
    ],
)
def test_image_thresholds_by_hand(method, threshold):
    score = torch.arange(100.0)[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    assert Method.parse(method).of_images(score) == pytest.approx(threshold)


@pytest.mark.parametrize(
    ("count", "alpha", "rank", "promised"),
    [
        (19, "0.05", 19, "1/20"),
        (18, "0.05", 18, "1/19"),
        (6, "0.05", 6, "1/7"),
        (20, "0.05", 20, "1/21"),
        (99, "0.29", 71, "29/100"),
        (999, "0.001", 999, "1/1000"),
        (998, "0.001", 998, "1/999"),
        (9, "0.1", 9, "1/10"),
        (9, "0.7", 3, "7/10"),
        (50, "0", 50, "1/51"),
        (50, "1", 1, "50/51"),
        (1, "0.5", 1, "1/2"),
    ],
)
def test_ranks_are_exact(count, alpha, rank, promised):
    for text in (f"fpr:{alpha}", f"quantile:{1 - Decimal(alpha)}"):
        method = Method.parse(text)
        assert (method.rank(count), method.promised(count)) == (rank, float(Fraction(promised))), text
        assert method.falls_short(count) == (0 < Fraction(alpha) < Fraction(1, count + 1))


def test_the_least_number_of_images_that_promises_a_rate():
    for percent in range(1, 101):
        method = Method.parse(f"fpr:{percent / 100}")
        assert method.promised(method.needed or 1) <= max(percent / 100, 0.5)
        assert method.needed < 1 or method.promised(method.needed) <= percent / 100
        assert method.needed < 2 or method.promised(method.needed - 1) > percent / 100
    assert Method.parse("fpr:0.05").needed == 19 and Method.parse("quantile:0.99").needed == 99
    for text in ("max", "sigma:3", "0.5"):
        assert Method.parse(text).needed is None and not Method.parse(text).falls_short(1)
    assert Method.parse("max").promised(6) == 1 / 7 and Method.parse("sigma:3").promised(6) is None


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1, 0.3])
@pytest.mark.parametrize("count", [6, 19, 21, 60, 200])
def test_exchangeable_scores_raise_no_more_false_alarms_than_promised(count, alpha):
    """The mean over calibrations is what is promised, of continuous scores exactly, of tied ones at most."""
    method, rng = Method.parse(f"fpr:{alpha}"), torch.Generator().manual_seed(count)
    draws, promised = 2000, method.promised(count)
    assert promised <= alpha or (method.falls_short(count) and promised == 1 / (count + 1))
    uniform = torch.rand(draws, count, generator=rng, dtype=torch.float64)
    found = torch.tensor([1 - method.of_images(one) for one in uniform])  # of uniform scores, the rate above it
    k = method.rank(count)
    deviation = math.sqrt(k * (count + 1 - k) / (count + 1) ** 2 / (count + 2))  # of Beta(n + 1 - k, k)
    assert abs(found.mean().item() - promised) < 4 * deviation / math.sqrt(draws)
    tied = (uniform * 5).floor()  # five values, each as likely
    above = torch.tensor([(4 - method.of_images(one)) / 5 for one in tied])
    assert above.mean().item() <= promised + 4 * deviation / math.sqrt(draws)


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
    "method", ["quantile", "quantile:2", "fpr:-1", "sigma:-3", "best", "sigma:x", "nan", "max:1", "number:3", True]
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
    assert int((peak > calibration.of("a").region).sum()) == int((score > calibration.of("a").image).sum()) == 4


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
    assert all(part in each for part in ("max", "a 2 (of 2,", "b 100 (of 1,", f"c 100 (of 3 of {ALL},"))
    assert all(part in found.describe(["b"]) for part in ("100", "max", "1 held-out", "of b"))
    alike = fit([1.0, 2.0, 3.0], [0, 1, 2], ("a", "b", "c")).describe(["a", "b", "c"])
    assert "a 1, b 2, c 3 (each of 1," in alike
    together = fit([1.0, 2.0, 100.0], [0, 0, 1], per="all").describe(["a", "b"])
    assert "100" in together and f"3 held-out normal images of {ALL}" in together
    assert "0.25" in Calibration(image=0.25).describe(["a"])


def test_description_and_file_say_what_the_images_can_promise():
    few, enough = (fit([float(i) for i in range(n)], [0] * n, ("a",), image="fpr:0.05") for n in (6, 19))
    assert all(part in few.describe(["a"]) for part in ("fpr:0.05 of 6", "no less than 0.143", "19 are needed"))
    assert "at most 0.05" in enough.describe(["a"]) and "needed" not in enough.describe(["a"])
    both = fit([float(i) for i in range(25)], [0] * 6 + [1] * 19, image="fpr:0.05").describe(["a", "b"])
    assert "of 6, which can promise no less than 0.143" in both and "of 19, false alarms at most 0.05" in both
    assert few.as_dict()["promised_fpr"] == few.as_dict()["thresholds"]["a"]["promised_fpr"] == 1 / 7
    assert (few.as_dict()["needed_normals"], enough.as_dict()["promised_fpr"]) == (19, 0.05)
    for image in ("sigma:3", 0.5):
        assert fit([1.0, 2.0], [0, 0], image=image).as_dict()["promised_fpr"] is None
        assert "promise" not in fit([1.0, 2.0], [0, 0], image=image).describe(["a"])


def test_the_result_file_holds_methods_and_thresholds():
    found = fit([1.0, 2.0], [0, 0], image="quantile:0.5").as_dict()
    assert (found["threshold_method"], found["pixel_threshold_method"]) == ("quantile:0.5", "max")
    assert (found["threshold"], found["pixel_threshold"], found["region_threshold"]) == (2, 4, 6)
    one = {"image": 2, "pixel": 4, "num_normals": 2, "source": "a", "region": 6, "cross_fitted": 0}
    one["promised_fpr"] = 1 / 3
    assert found["thresholds"] == {"a": one} and found["threshold_per"] == "category"


@pytest.mark.parametrize("value", ["x", None, [0.5]])
def test_a_state_whose_thresholds_are_no_numbers(value):
    bad, sound = {"image": 1.0, "pixel": value}, {"image": 1.0, "pixel": 1.0}
    for state in ({"pooled": bad, "categories": {}}, {"pooled": sound, "categories": {"a": bad}}):
        with pytest.raises(TypeError):
            Calibration().load_state_dict(state)
