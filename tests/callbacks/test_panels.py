from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from adlight.callbacks import panels
from adlight.callbacks.panels import Panels, draw
from adlight.detection.module import AnomalyModule, TestedImage
from adlight.detection.pictures import colour_ceiling
from adlight.metrics.pixel import PixelHistogram
from adlight.metrics.thresholds import Threshold
from adlight.types import Prediction, Record

SIZE = 8


def case(number, label, score, level=0.5):
    prediction = Prediction(score, 0.5, 0.2, "bottle", 0.0, [(1, 2, 5, 7)] if label else [])
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[2:4, 2:4] = bool(label)
    return panels.Case(
        number,
        prediction,
        torch.full((1, SIZE, SIZE), 0.5),
        torch.full((1, SIZE, SIZE), 0.25),
        torch.full((SIZE, SIZE), level),
        mask,
    )


def test_the_highest_and_the_lowest_are_shown():
    scores = [0.3, 0.9, 0.1, 0.5, 0.7, 0.2, 0.8]
    kept = Panels("x", cases=2).extremes([case(i, 0, score) for i, score in enumerate(scores)])
    assert [one.prediction.score for one in kept] == [0.9, 0.8, 0.2, 0.1]
    few = Panels("x", cases=2).extremes([case(i, 0, score) for i, score in enumerate(scores[:3])])
    assert [one.index for one in few] == [1, 0, 2]  # none is shown twice
    tied = Panels("x", cases=1).extremes([case(i, 0, 0.5) for i in (3, 1, 2)])
    assert [one.index for one in tied] == [1, 3]


def test_keeping_them_batch_by_batch_gives_the_same():
    scores = np.random.default_rng(0).permutation(20) / 20
    everything, callback, kept = [case(i, 0, score) for i, score in enumerate(scores)], Panels("x", cases=3), []
    for one in everything:
        kept = callback.extremes([*kept, one])
    assert [one.prediction for one in kept] == [one.prediction for one in callback.extremes(everything)]


def test_one_colour_scale_for_all():
    low, high = case(0, 0, 0.1, level=0.1), case(1, 1, 0.9, level=0.4)
    records = [Record("a.png", "bottle"), Record("b.png", "bottle", "hole", 1)]
    figure = draw([low, high], records, threshold=0.5, pixel_threshold=0.2, ceiling=0.8)
    axes = np.array(figure.axes).reshape(2, 5)
    assert [axis.get_title() for axis in axes[0]] == [
        *("input", "reconstruction", "error, 0 to 0.8", "true mask", "decision")
    ]
    assert [row[2].images[0].get_clim() for row in axes] == [(0, 0.8), (0, 0.8)]
    assert axes[0, 4].get_xlabel() == "normal (right)\n0.1 <= 0.5"
    assert axes[1, 4].get_xlabel() == "anomalous (right)\n0.9 > 0.5"
    assert [len(row[4].patches) for row in axes] == [0, 1]
    assert axes[1, 4].patches[0].get_bbox().bounds == (0.5, 1.5, 4, 5)  # pixel centres lie at whole numbers


def test_mistakes_are_marked():
    records = [Record("a.png", "bottle"), Record("b.png", "bottle", "hole", 1)]
    figure = draw([case(0, 0, 0.7), case(1, 1, 0.2)], records, 0.5, 0.9, 1.0)
    labels = [figure.axes[4].xaxis.label, figure.axes[9].xaxis.label]
    assert ["WRONG" in label.get_text() and label.get_color() == "red" for label in labels] == [True, True]


def test_the_pixel_threshold_lies_in_the_middle_of_the_colours():
    assert colour_ceiling(0.2) == 0.4 and colour_ceiling(0.0) > 0


def test_a_picture_a_category(tmp_path):
    """A test of two categories, without a trainer."""
    records = [Record(f"{i}.png", "ab"[i % 2], "hole" if i > 3 else "good", int(i > 3)) for i in range(8)]
    data = SimpleNamespace(categories=["a", "b", "empty"], records=lambda split: records)
    trainer = SimpleNamespace(datamodule=data, is_global_zero=True)
    module = AnomalyModule()
    module.trainer = trainer
    module.calibration.pooled = Threshold(0.5, 0.5)
    module.calibration.categories = {"a": Threshold(0.25, 0.25, 1, "a")}
    module.pixels = PixelHistogram(3)
    callback = Panels(str(tmp_path / "panels"), cases=1)
    callback.on_test_epoch_start(trainer, module)
    for start in (0, 4):
        index = torch.arange(start, start + 4)
        pixel, mask = (
            torch.rand(4, SIZE, SIZE, generator=torch.Generator().manual_seed(start)),
            torch.zeros(4, SIZE, SIZE),
        )
        batch = {"image": torch.rand(4, 3, SIZE, SIZE), "mask": mask.bool(), "index": index, "category": index % 2}
        module.predictions += [
            TestedImage(i, i % 2, int(i > 3), Prediction(i / 8, 0.25, 0.25, "a", 0.0, [])) for i in index.tolist()
        ]
        module.pixels.update(pixel, batch["mask"], batch["category"])
        callback.on_test_batch_end(trainer, module, {"pixel": pixel, "reconstruction": batch["image"]}, batch, 0)
    assert {key: [one.index for one in kept] for key, kept in callback.kept.items()} == {
        **{(0, 0): [2, 0], (1, 0): [3, 1], (0, 1): [6, 4], (1, 1): [7, 5]}
    }
    callback.on_test_end(trainer, module)
    assert {path.name for path in (tmp_path / "panels").iterdir()} == {"a.png", "b.png"}
    with Image.open(tmp_path / "panels" / "a.png") as picture:
        assert picture.size == (1100, 990)  # 4 rows
    callback.on_test_epoch_start(trainer, module)
    assert callback.kept == {}
