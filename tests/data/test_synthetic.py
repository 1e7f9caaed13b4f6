import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from adlight.data import synthetic
from adlight.data.mvtec import Synthetic
from adlight.data.synthetic import KINDS, SCENES, draw, render
from adlight.types import UserError

SETTINGS = {"seed": 3, "size": 48, "train": 2, "test": 7}


def digest(folder):
    """Hash of every file by its relative path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def generate(root, **settings):
    Synthetic(root, **(SETTINGS | settings)).prepare()
    return root


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("data") / "synthetic")


def test_layout_is_that_of_mvtec_ad(small):
    assert sorted(path.name for path in small.iterdir()) == ["board", "fabric", "synthetic.json", "washer", "wood"]
    images = {"train/good/000.png", "train/good/001.png", "test/good/000.png", "test/good/001.png"}
    images |= {f"test/{kind}/000.png" for kind in KINDS} | {f"ground_truth/{kind}/000_mask.png" for kind in KINDS}
    for category in SCENES:
        assert {str(path.relative_to(small / category)) for path in (small / category).rglob("*.png")} == images
    with Image.open(small / "washer/test/blob/000.png") as image:
        assert (image.mode, image.size) == ("RGB", (48, 48))
    with Image.open(small / "washer/ground_truth/blob/000_mask.png") as mask:
        assert (mask.mode, mask.size) == ("L", (48, 48))
        assert set(np.unique(np.asarray(mask))) == {0, 255}


def test_default_counts(tmp_path, monkeypatch):
    blank = np.zeros((32, 32, 3), np.uint8)
    monkeypatch.setattr(synthetic, "draw", lambda _, split, *key: (blank, np.full((32, 32), "good" not in split)))
    Synthetic(tmp_path).prepare()
    counts = {name: len(list((tmp_path / "wood" / name).glob("*.png"))) for name in ("train/good", "test/good")}
    assert counts == {"train/good": 60, "test/good": 10}
    assert [len(list((tmp_path / "wood" / "test" / kind).glob("*.png"))) for kind in KINDS] == [5] * 5


def test_same_settings_give_the_same_bytes(small, tmp_path):
    assert digest(generate(tmp_path / "again")) == digest(small)


def test_an_image_depends_on_its_own_key_alone(small, tmp_path):
    other, known = digest(generate(tmp_path / "other", train=3, test=9)), digest(small)
    del known["synthetic.json"]
    assert known.items() <= other.items()
    assert len(set(other.values())) == len(other), "two files are the same"


def test_another_seed_gives_other_images(small, tmp_path):
    assert not set(digest(generate(tmp_path / "other", seed=4)).values()) & set(digest(small).values())


@pytest.mark.parametrize("category", SCENES)
@pytest.mark.parametrize("kind", KINDS)
def test_mask_is_exactly_what_the_defect_changed(category, kind):
    for index in range(2):
        image, mask = draw(category, f"test/{kind}", index, seed=0, size=64)
        twin = render(category, 64, f"0/{category}/test/{kind}/{index}")
        change = np.abs(image.astype(int) - twin).max(axis=2)
        assert np.array_equal(mask, change > 0)
        assert change[mask].min() > synthetic.TOLERANCE and change[mask].mean() > 12, "not visible"
        assert 0.002 <= mask.mean() <= 0.35


@pytest.mark.parametrize("category", SCENES)
def test_normal_images_vary_and_have_no_mask(category):
    pairs = [draw(category, "train/good", index, seed=0, size=64) for index in range(3)]
    assert not any(mask.any() for _, mask in pairs)
    images = np.stack([image for image, _ in pairs]).astype(int)
    assert np.abs(images[0] - images[1]).mean() > 2
    assert images.std() > 15 and (images == 255).mean() < 0.05  # neither flat nor overexposed


@pytest.mark.parametrize("category", SCENES)
def test_every_size_can_be_drawn(category):
    for size, kind in ((32, "scratch"), (32, "misplaced"), (45, "missing"), (200, "colour")):
        image, mask = draw(category, f"test/{kind}", 0, seed=1, size=size)
        assert image.shape == (size, size, 3) and mask.shape == (size, size) and mask.any()


def test_second_call_returns_at_once(small, monkeypatch):
    monkeypatch.setattr(synthetic, "draw", lambda *_: pytest.fail("drawn again"))
    generate(small)


def test_other_settings_are_refused(small):
    with pytest.raises(UserError, match=r"test 7 instead of 8, seed 3 instead of 5") as error:
        generate(small, seed=5, test=8)
    assert str(small) in str(error.value) and "size" not in str(error.value) and "root" in str(error.value)


def test_a_set_of_another_version_is_refused(small, monkeypatch):
    monkeypatch.setattr(synthetic, "VERSION", synthetic.VERSION + 1)
    with pytest.raises(UserError, match="version"):
        generate(small)


def test_interrupted_call_leaves_nothing(tmp_path, monkeypatch):
    drawn = []

    def interrupted(*key):
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.append(key)
        return draw(*key)

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "draw", interrupted)
        with pytest.raises(KeyboardInterrupt):
            generate(tmp_path / "set")
    assert drawn and not list(tmp_path.iterdir())
    root = generate(tmp_path / "set")
    assert json.loads((root / "synthetic.json").read_text())["seed"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_two_processes_at_once_end_with_one_set(small, tmp_path, monkeypatch):
    root, draw = tmp_path / "set", synthetic.draw

    def overtaken(*key):
        if not root.exists():
            with monkeypatch.context() as patch:
                patch.setattr(synthetic, "draw", draw)
                generate(root)
        return draw(*key)

    monkeypatch.setattr(synthetic, "draw", overtaken)
    assert digest(generate(root)) == digest(small)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_foreign_folder_is_left_alone_and_an_empty_one_filled(small, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"synthetic\.json"):
        generate(tmp_path / "set")
    assert (tmp_path / "set" / "mine.txt").read_text() == "mine"
    (tmp_path / "set" / "mine.txt").unlink()
    assert digest(generate(tmp_path / "set")) == digest(small)


def test_unwritable_place_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        generate(tmp_path / "file" / "set")


@pytest.mark.parametrize(
    ("text", "change"), [("size .*16", {"size": 16}), ("train .*0", {"train": 0}), ("test .*1", {"test": 1})]
)
def test_numbers_too_small(tmp_path, text, change):
    with pytest.raises(ValueError, match=text):
        generate(tmp_path / "set", **change)
    assert not list(tmp_path.iterdir())
