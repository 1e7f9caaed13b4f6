"""What every room shares: the one "did you mean", the answer for an image."""

from adlight.types import Prediction, first_line, unknown_name


def test_an_unknown_name_comes_with_the_nearest_and_all():
    text = unknown_name("class", "botle", ["bottle", "cat"])
    assert "'botle'" in text and "did you mean bottle?" in text and "bottle, cat" in text
    assert "did you mean" not in unknown_name("class", "zzz", ["bottle"])
    assert "did you mean" not in unknown_name("digit", "11", ["1", "2"])
    assert "none" in unknown_name("class", "x", [])


def test_an_error_is_named_by_its_first_line_or_its_class():
    assert first_line(ValueError("\nno such file\nmore")) == "no such file"
    assert first_line(MemoryError()) == "MemoryError"


def test_a_score_at_the_threshold_is_normal():
    assert [Prediction(score, 0.5, 0.1, "bottle", 0.0, []).anomalous for score in (0.5, 0.50001)] == [False, True]
