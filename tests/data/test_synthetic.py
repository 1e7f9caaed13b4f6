import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from adlight.data import synthetic
from adlight.data.synthetic import KINDS, SCENES, draw, generate, picture
from adlight.types import UserError

SMALL = {"seed": 3, "size": 48, "train": 2, "test": 7, "categories": ["washer", "fabric"]}


def digest(folder: Path) -> dict[str, str]:
    """Hash of every file by its relative path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("data") / "synthetic", **SMALL)


def test_layout_is_that_of_mvtec_ad(small):
    assert sorted(path.name for path in small.iterdir()) == ["fabric", "synthetic.json", "washer"]
    for category in ("fabric", "washer"):
        names = {str(path.relative_to(small / category)) for path in (small / category).rglob("*.png")}
        images = {"train/good/000.png", "train/good/001.png", "test/good/000.png", "test/good/001.png"}
        defects = {f"test/{kind}/000.png" for kind in KINDS}
        masks = {f"ground_truth/{kind}/000_mask.png" for kind in KINDS}
        assert names == images | defects | masks
    with Image.open(small / "washer/test/blob/000.png") as image:
        assert (image.mode, image.size) == ("RGB", (48, 48))
    with Image.open(small / "washer/ground_truth/blob/000_mask.png") as mask:
        assert (mask.mode, mask.size) == ("L", (48, 48))
        assert set(np.unique(np.asarray(mask))) == {0, 255}


def test_default_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "draw", lambda *_: (np.zeros((32, 32, 3), np.uint8), np.ones((32, 32), bool)))
    root = generate(tmp_path / "set", seed=0, size=32, train=60, test=35, categories=["wood"])
    counts = {split: len(list((root / "wood" / split).glob("*.png"))) for split in ("train/good", "test/good")}
    assert counts == {"train/good": 60, "test/good": 10}
    assert [len(list((root / "wood/test" / kind).glob("*.png"))) for kind in KINDS] == [5] * 5


def test_same_parameters_give_the_same_bytes(small, tmp_path):
    again = generate(tmp_path / "again", **{**SMALL, "categories": ["fabric", "washer", "washer"]})
    assert digest(again) == digest(small)


def test_an_image_depends_on_its_own_key_alone(small, tmp_path):
    other = digest(generate(tmp_path / "other", seed=3, size=48, train=3, test=9, categories=["fabric"]))
    known = {name: sha for name, sha in digest(small).items() if name.startswith("fabric")}
    assert known.items() <= other.items()
    assert len(set(other.values())) == len(other), "two files are the same"


def test_another_seed_gives_other_images(small, tmp_path):
    other = digest(generate(tmp_path / "other", **{**SMALL, "seed": 4}))
    assert not set(other.values()) & set(digest(small).values())


@pytest.mark.parametrize("category", SCENES)
@pytest.mark.parametrize("kind", KINDS)
def test_mask_is_exactly_what_the_defect_changed(category, kind):
    for index in range(2):
        image, mask = draw(category, f"test/{kind}", index, seed=0, size=64)
        twin = picture(category, 64, f"0/{category}/test/{kind}/{index}")
        change = np.abs(image.astype(int) - twin).max(axis=2)
        assert np.array_equal(mask, change > 0)
        assert change[mask].min() > synthetic.TOLERANCE
        assert change[mask].mean() > 12, "not visible"
        assert 0.002 <= mask.mean() <= 0.35
        regions, count = ndimage.label(mask, np.ones((3, 3)))
        assert min(np.bincount(regions.ravel())[1:]) >= 4 and count >= 1


@pytest.mark.parametrize("category", SCENES)
def test_normal_images_vary_and_have_no_mask(category):
    pairs = [draw(category, "train/good", index, seed=0, size=64) for index in range(3)]
    assert not any(mask.any() for _, mask in pairs)
    images = np.stack([image for image, _ in pairs]).astype(int)
    assert np.abs(images[0] - images[1]).mean() > 2
    assert images.std() > 15 and (images == 255).mean() < 0.05  # neither flat nor burnt out


@pytest.mark.parametrize("category", SCENES)
def test_every_size_can_be_drawn(category):
    for size, kind in ((32, "scratch"), (32, "misplaced"), (45, "missing"), (200, "colour")):
        image, mask = draw(category, f"test/{kind}", 0, seed=1, size=size)
        assert image.shape == (size, size, 3) and mask.shape == (size, size) and mask.any()


def test_specks_are_dropped():
    mask = np.zeros((8, 8), bool)
    mask[0, :3] = True
    mask[4:6, 4:6] = True
    expected = np.zeros((8, 8), bool)
    expected[4:6, 4:6] = True
    assert np.array_equal(synthetic.without_specks(mask), expected)


def test_second_call_returns_at_once(small, monkeypatch):
    monkeypatch.setattr(synthetic, "write_category", lambda *_: pytest.fail("drawn again"))
    assert generate(small, **SMALL) == small


def test_other_parameters_are_refused(small):
    with pytest.raises(UserError, match=r"seed 3 instead of 5, test 7 instead of 8.*dataset\.root.*remove") as error:
        generate(small, **{**SMALL, "seed": 5, "test": 8})
    assert str(small) in str(error.value) and "size" not in str(error.value)


def test_other_version_is_refused(small, monkeypatch):
    monkeypatch.setattr(synthetic, "VERSION", synthetic.VERSION + 1)
    with pytest.raises(UserError, match="version"):
        generate(small, **SMALL)


def test_interrupted_call_leaves_nothing(tmp_path, monkeypatch):
    written = []

    def interrupted(folder, *args):
        if written:
            raise KeyboardInterrupt
        written.append(folder)
        (folder / "train").mkdir(parents=True)

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "write_category", interrupted)
        with pytest.raises(KeyboardInterrupt):
            generate(tmp_path / "set", **SMALL)
    assert written and not list(tmp_path.iterdir())
    root = generate(tmp_path / "set", **SMALL)
    assert json.loads((root / "synthetic.json").read_text())["seed"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_two_processes_at_once_end_with_one_set(small, tmp_path, monkeypatch):
    root, write = tmp_path / "set", synthetic.write_category

    def overtaken(*args):
        write(*args)
        if not root.exists():
            with monkeypatch.context() as patch:
                patch.setattr(synthetic, "write_category", write)
                generate(root, **SMALL)

    monkeypatch.setattr(synthetic, "write_category", overtaken)
    assert digest(generate(root, **SMALL)) == digest(small)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"no synthetic\.json"):
        generate(tmp_path / "set", **SMALL)
    assert (tmp_path / "set" / "mine.txt").read_text() == "mine"


def test_empty_folder_is_filled(small, tmp_path):
    (tmp_path / "set").mkdir()
    assert digest(generate(tmp_path / "set", **SMALL)) == digest(small)


def test_unwritable_place_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        generate(tmp_path / "file" / "set", **SMALL)


OUT_OF_RANGE = {
    "bottle.*board": {"categories": ["bottle"]},
    "board": {"categories": []},
    "size 16": {"size": 16},
}
OUT_OF_RANGE |= {"train 0": {"train": 0}, "test 1": {"test": 1}}


@pytest.mark.parametrize(("text", "change"), OUT_OF_RANGE.items())
def test_arguments_out_of_range(tmp_path, text, change):
    with pytest.raises(UserError, match=text):
        generate(tmp_path / "set", **{**SMALL, **change})
    assert not list(tmp_path.iterdir())
