"""Which category an image is taken for, by its looks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from makers import fake_mvtec
from PIL import Image

from adlight.data.datamodule import AnomalyDataModule
from adlight.data.mvtec import MVTecAD
from adlight.detection.categories import CategoryRule
from adlight.detection.classifier import CategoryClassifier, describe_images
from adlight.metrics.thresholds import Calibration, Threshold
from adlight.types import UserError

SIZE = 40


def make_data(root, categories=("nut", "bolt", "pin"), **settings):
    """Categories that differ in brightness and in the direction of their stripes, whatever the stripes' phase."""
    rng = np.random.default_rng(0)
    fake_mvtec(root, categories, train=12, test=1, size=SIZE)
    for c, category in enumerate(categories):
        for path in sorted((root / category / "train" / "good").glob("*.png")):
            wave = 100 + 20 * (c == 2) + 60 * np.sin((np.arange(SIZE) + rng.integers(SIZE)) / 3)
            stripes = np.broadcast_to(wave[None] if c % 2 else wave[:, None], (SIZE, SIZE))
            Image.fromarray((stripes + rng.normal(0, 9, (SIZE, SIZE))).clip(0, 255).astype(np.uint8)).save(path)
    data = AnomalyDataModule(MVTecAD, root=root, image_size=32, val_fraction=0.25, **settings)
    data.setup("validate")
    return data


def held_out(data):
    """The held-out images, their sizes where they are padded, and their categories."""
    batch = data.datasets["val"].__getitems__(range(len(data.datasets["val"])))
    return batch["image"].float() / 255, batch.get("size"), [record.category for record in data.records("val")]


@pytest.mark.parametrize("settings", [{}, {"channels": 1}, {"keep_shape": True}, {"cache_gb": 0}])
def test_categories_are_told_apart_by_looks(tmp_path, settings):
    data, found, other = make_data(tmp_path, **settings), CategoryClassifier(), CategoryClassifier()
    found.fit(data)
    image, size, truth = held_out(data)
    assert found.names == ["bolt", "nut", "pin"] and (found.accuracy, found.num_normals) == (1, 9)
    assert found(image, size) == truth and "100.0% of 9" in found.describe()[0]
    other.load_state_dict(found.state_dict())
    assert other(image[:1], None if size is None else size[:1]) == truth[:1]  # whatever else is in the batch


def test_padding_is_not_looked_at():
    image = torch.rand(2, 3, 32, 32)
    image[1, :, :20, :16] = torch.nn.functional.interpolate(image[:1], (20, 16))[0]
    size = torch.tensor([[32, 32], [20, 16]])
    before = describe_images(image, size)
    image[1, :, 20:], image[1, :, :, 16:] = 0, 1
    assert describe_images(image, size).equal(before)


def test_one_category_has_nothing_to_tell_apart(tmp_path):
    found = CategoryClassifier()
    found.fit(make_data(tmp_path, ("nut",)))
    assert not found.names and not found.describe()


def calibration(*names, **settings):
    found = Calibration(**settings)
    found.pooled = Threshold(1, 1)
    found.categories = {name: Threshold(2, 2, 1, name) for name in names}
    return found


def test_a_category_that_was_not_validated_has_no_thresholds(tmp_path):
    data, classifier = make_data(tmp_path), CategoryClassifier()
    classifier.fit(data)
    image, _, truth = held_out(data)
    rule = CategoryRule("auto", calibration("nut"), classifier)
    with pytest.raises(UserError, match=r"bolt|pin"):
        rule([None] * len(truth), (image * 255).round().byte().numpy(), None)
    with pytest.raises(UserError, match="category="):  # one category of three is not the only one
        CategoryRule(None, calibration("nut"), classifier).of_path(None)


def test_a_categorys_own_name_comes_first():
    rule = CategoryRule("pooled", calibration("pooled", "auto"), CategoryClassifier())
    assert rule.of_path(None) == "pooled"
    assert not CategoryRule("auto", calibration("pooled", "auto"), CategoryClassifier()).by_looks


def test_nothing_was_learned_to_choose_by():
    with pytest.raises(UserError, match="category=auto"):
        CategoryRule("auto", calibration("a", "b"), CategoryClassifier())


@pytest.mark.parametrize(
    ("asked", "settings"), [(None, {"per": "all"}), (None, {"image": 1, "pixel": 1}), ("pooled", {})]
)
def test_a_folder_names_the_category_where_thresholds_are_shared(asked, settings):
    """A region of interest may depend on the category where thresholds do not."""
    rule = CategoryRule(asked, calibration("bolt", "nut", **settings), CategoryClassifier())
    images = Path("data/nut/test/x.png"), Path("data/x.png"), None
    assert [rule.guess(path) for path in images] == ["nut", None, None]
    assert [rule.of_path(path) for path in images] == [None] * 3
    assert CategoryRule("bolt", calibration("bolt", "nut"), CategoryClassifier()).guess(images[0]) == "bolt"
