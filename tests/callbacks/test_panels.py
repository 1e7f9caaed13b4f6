from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from adlight.callbacks.panels import Example, Panels
from adlight.detection.gathering import TestedImage
from adlight.detection.module import AnomalyModule
from adlight.detection.pictures import draw_panel
from adlight.metrics.thresholds import Calibration
from adlight.types import Prediction, Record

SIZE = 8


def predict(score, boxes=()):
    return Prediction(score, 0.5, 0.25, "a", 0.0, list(boxes))


def example(index, score):
    return Example(index, predict(score), np.zeros((SIZE, SIZE, 3), np.uint8), np.zeros((SIZE, SIZE), bool))


def test_the_highest_and_the_lowest_are_shown():
    scores = [0.3, 0.9, 0.1, 0.5, 0.7, 0.2, 0.8]
    kept = Panels("x", cases=2).select_extremes([example(i, score) for i, score in enumerate(scores)])
    assert [one.prediction.score for one in kept] == [0.9, 0.8, 0.2, 0.1]
    few = Panels("x", cases=2).select_extremes([example(i, score) for i, score in enumerate(scores[:3])])
    assert [one.index for one in few] == [1, 0, 2]  # none is shown twice
    tied = Panels("x", cases=1).select_extremes([example(i, 0.5) for i in (3, 1, 2)])
    assert [one.index for one in tied] == [1, 3]


def test_keeping_them_batch_by_batch_gives_the_same():
    scores = np.random.default_rng(0).permutation(20) / 20
    everything, callback, kept = [example(i, score) for i, score in enumerate(scores)], Panels("x", cases=3), []
    for one in everything:
        kept = callback.select_extremes([*kept, one])
    assert [one.index for one in kept] == [one.index for one in callback.select_extremes(everything)]


def test_a_picture_per_category(tmp_path):
    """A test of two categories, without a data set."""
    records = [Record(f"{i}.png", "ab"[i % 2], "hole" if i > 3 else "good", int(i > 3)) for i in range(8)]
    data = SimpleNamespace(categories=["a", "b", "empty"], records=lambda split: records)
    trainer = SimpleNamespace(datamodule=data, is_global_zero=True)
    module = AnomalyModule()
    module.calibration = Calibration(0.5, 0.25)
    module._trainer = trainer
    callback = Panels(str(tmp_path / "panels"), cases=1)
    callback.on_test_epoch_start(trainer, module)
    image, pixel = (torch.rand(8, *shape, generator=torch.Generator().manual_seed(0)) for shape in ((3, 8, 8), (8, 8)))
    for part in (slice(0, 4), slice(4, 8)):
        index = torch.arange(8)[part]
        batch = {"image": image[part], "mask": pixel[part] > 0.9, "index": index, "category": index % 2}
        module.predictions += [TestedImage(i, i % 2, int(i > 3), predict(i / 8)) for i in index.tolist()]
        scores = {"pixel": pixel[part], "reconstruction": image[part]}
        callback.on_test_batch_end(trainer, module, scores, batch, 0)
    assert {key: [one.index for one in kept] for key, kept in callback.kept.items()} == {
        **{(0, 0): [2, 0], (1, 0): [3, 1], (0, 1): [6, 4], (1, 1): [7, 5]}
    }
    shown = callback.kept[0, 1][0]
    assert np.array_equal(shown.image, (image[6] * 255).round().byte().permute(1, 2, 0).numpy())
    assert np.array_equal(shown.prediction.mask, (pixel[6] > 0.25).numpy())
    assert np.array_equal(shown.true_mask, (pixel[6] > 0.9).numpy())
    callback.on_test_end(trainer, module)
    assert {path.name for path in (tmp_path / "panels").iterdir()} == {"a.png", "b.png"}
    assert [one.index for one in callback.shown["a"]] == [6, 4, 2, 0]  # anomalies first
    row = draw_panel(Image.fromarray(shown.image), shown.prediction, records[6], shown.true_mask)
    with Image.open(callback.path("a")) as picture:
        assert picture.width == row.width and picture.height > 4 * row.height
        assert np.array_equal(np.asarray(picture)[18 : 18 + row.height], np.asarray(row))
    callback.on_test_epoch_start(trainer, module)
    assert callback.kept == {} and callback.shown == {}
