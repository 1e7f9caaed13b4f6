"""What is said of a map, from which the page finds regions as the detector does."""

from types import SimpleNamespace

import numpy as np
import pytest

from adlight.data.frames import Frame, WholeFrame
from adlight.data.tiling import Tiling
from adlight.detection.categories import CategoryRule
from adlight.detection.classifier import CategoryClassifier
from adlight.metrics.thresholds import Calibration
from adlight.serving.responses import describe_detector, describe_prediction
from adlight.types import Prediction

INSIDE = np.zeros((8, 8), bool)
INSIDE[2:4] = True


@pytest.mark.parametrize(
    ("frame", "tiling", "content", "shape", "wanted"),
    [
        (Frame(8, resize=10), None, None, (10, 10), 64),  # the border is cut off
        (Frame(8), None, INSIDE, (8, 8), 16),
        (WholeFrame(), Tiling(8, 0.25, (8, 8)), None, (9, 30), 270),
    ],
)
def test_shares_are_of_what_counts(frame, tiling, content, shape, wanted):
    detector = SimpleNamespace(frame=frame, tiling=tiling, calibration=Calibration(min_area=0.25, closing=2.0))
    prediction = Prediction(1.0, 0.5, 0.5, "all", 0.0, [], np.zeros(shape, bool), np.zeros(shape, np.float32))
    found = describe_prediction(prediction, "x.png", ["map"], detector, content)["map"]
    assert (found["content"], found["min_pixels"], found["closing"]) == (wanted, 0.25 * wanted, 2.0)


@pytest.mark.parametrize("tiling", [None, Tiling(20, 0.25, (8, 8))])
def test_the_size_that_a_detector_looks_at(tiling):
    calibration = Calibration(0.5, 0.5)
    rule = CategoryRule(None, calibration, CategoryClassifier())
    parts = {"frame": WholeFrame() if tiling else Frame(8), "tiling": tiling, "calibration": calibration}
    detector = SimpleNamespace(**parts, category_rule=rule, device="cpu", channels=3, batch_size=4)
    found = describe_detector(detector, "parts")
    assert (found["image_size"], found["tile"]) == ([8, 8], tiling and 20)
