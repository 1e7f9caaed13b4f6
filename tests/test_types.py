"""What every room shares: range checks, the one "did you mean", the answer for an image."""

import math

import pytest

from adlight.types import Prediction, check_integer, check_range, unknown_name


@pytest.mark.parametrize("value", [0, 0.5, 1])
def test_numbers_within_the_range_pass(value):
    check_range("topk", value, 0, 1)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, -math.inf, True, "1", None])
def test_others_do_not(value):
    with pytest.raises(ValueError, match=rf"topk.*{value}"):
        check_range("topk", value, 0, 1)


def test_infinity_and_exclusive_minimum():
    check_range("weight", -1e9, -math.inf)
    with pytest.raises(ValueError, match=r"lr.*0\.0"):
        check_range("lr", 0.0, exclusive=True)
    with pytest.raises(ValueError, match=r"weight.*inf"):
        check_range("weight", math.inf, -math.inf)


@pytest.mark.parametrize("value", [0, 10.0, True, "3", math.nan])
def test_only_integers_are_integers(value):
    check_integer("steps", 1, 1)
    with pytest.raises(ValueError, match=rf"steps.*{value}"):
        check_integer("steps", value, 1)


def test_an_unknown_name_comes_with_the_nearest_and_all():
    text = unknown_name("class", "botle", ["bottle", "cat"])
    assert "'botle'" in text and "did you mean bottle?" in text and "bottle, cat" in text
    assert "did you mean" not in unknown_name("class", "zzz", ["bottle"])
    assert "did you mean" not in unknown_name("digit", "11", ["1", "2"])
    assert "none" in unknown_name("class", "x", [])


def test_a_score_at_the_threshold_is_normal():
    assert [Prediction(score, 0.5, 0.1, "bottle", 0.0, []).anomalous for score in (0.5, 0.50001)] == [False, True]
