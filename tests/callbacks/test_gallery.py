"""The gallery: all of a small test, an even sample and the worst errors of a large one."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from adlight.callbacks.gallery import Candidate, Gallery
from adlight.detection.module import AnomalyModule, TestedImage
from adlight.runs.folder import RunFolder
from adlight.types import Prediction, Record


def gallery_of(tmp_path, scores, labels, images, side=16, batch=4, size=(12, 8)):
    """Test a module that gives these scores at threshold 0.5. -> the folder's rows."""
    module = AnomalyModule()
    records = [Record(f"{i}.png", "a") for i in range(len(scores))]
    data = SimpleNamespace(records=lambda split: records, categories=["a"])
    module._trainer = SimpleNamespace(datamodule=data)
    trainer, callback = SimpleNamespace(is_global_zero=True), Gallery(str(tmp_path), images, side)
    callback.on_test_epoch_start(trainer, module)
    for start in range(0, len(scores), batch):
        rows = range(start, min(start + batch, len(scores)))
        module.predictions += [
            TestedImage(i, 0, labels[i], Prediction(scores[i], 0.5, 0.25, "a", 0.0, [])) for i in rows
        ]
        mask = torch.zeros(len(rows), 16, 16, dtype=torch.bool)
        mask[:, 0] = torch.tensor([bool(labels[i]) for i in rows])[:, None]
        one = {"image": torch.rand(len(rows), 1, 16, 16), "mask": mask, "index": torch.tensor(rows)}
        one["size"] = torch.tensor([size] * len(rows))
        callback.on_test_batch_end(trainer, module, {"pixel": torch.rand(len(rows), 16, 16)}, one, 0)
    callback.on_test_end(trainer, module)
    return callback.folder


def test_all_images_of_a_small_test_without_their_padding(tmp_path):
    folder = gallery_of(tmp_path, [0.1, 0.9, 0.6], [0, 1, 0], images=3, side=8)
    assert folder.rows() == {0: False, 1: True, 2: False}
    with Image.open(folder.image_path(1)) as image:
        assert image.format == "WEBP" and image.size == (5, 8)  # of 8 x 12, no side longer than 8
    assert len(list(tmp_path.iterdir())) == 2 * 3 + 1
    assert gallery_of(tmp_path, [0.1, 0.2], [0, 0], images=1, side=8).rows() == {0: False}  # the old ones are gone


def test_a_large_test_keeps_a_sample_and_the_worst_errors(tmp_path):
    scores = np.linspace(0, 1, 40).tolist()  # misses grow downwards from 19, false alarms upwards from 20
    labels = [1] * 20 + [0] * 20
    rows = list(gallery_of(tmp_path, scores, labels, images=8).rows())
    assert {0, 10, 20, 30} | {1, 38, 39} <= set(rows) and len(rows) == 8
    right = list(gallery_of(tmp_path, scores, [0] * 20 + [1] * 20, images=8).rows())
    assert right == [0, 10, 20, 30]


def test_what_is_kept_on_the_way_is_what_is_kept_at_the_end():
    gallery = Gallery("x", images=4)
    errors = np.random.default_rng(0).random(30)
    kept, everything = [], [Candidate(i, i % 15 == 0, errors[i], None) for i in range(30)]
    for one in everything:
        kept = gallery.select([*kept, one])
    assert {one.index for one in kept} == {one.index for one in gallery.select(everything)}


def test_none_is_asked_for(tmp_path):
    assert gallery_of(tmp_path / "x", [0.9], [0], images=0).rows() == {} and not (tmp_path / "x").exists()
    for wrong in (-1, 1.5):
        with pytest.raises(ValueError, match="images"):
            Gallery("x", images=wrong)


def test_a_run_has_one(tiny_run):
    gallery = RunFolder(tiny_run[0]).gallery
    labels = [row == "1" for row in RunFolder(tiny_run[0]).predictions()["label"].astype(str)]
    assert list(gallery.rows().values()) == labels
