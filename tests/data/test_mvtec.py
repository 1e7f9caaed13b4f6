import shutil

import pytest
from makers import fake_mvtec, write_image, write_mask

from adlight.data.mvtec import MVTecAD, Synthetic
from adlight.types import UserError


@pytest.fixture
def root(tmp_path):
    return fake_mvtec(tmp_path / "mvtec")


def unmasked(records):
    return [record for record in records if record.label and record.mask is None]


def error_of(source):
    with pytest.raises(UserError) as caught:
        source.train()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_takes_every_category_sorted(root):
    source = MVTecAD(root)
    train, test = source.train(), source.test()
    assert [record.category for record in train] == ["bottle"] * 6 + ["screw"] * 6
    assert all(record.label == 0 and record.defect == "good" and record.mask is None for record in train)
    assert len(test) == 18
    assert sum(record.label for record in test) == 12
    assert not unmasked(test)
    assert source.read(train[0]).size == (32, 32)


def test_masks_belong_to_their_images(root):
    for record in MVTecAD(root, category="screw").test():
        if record.label:
            assert record.mask == record.path.replace("/test/", "/ground_truth/").replace(".png", "_mask.png")
            assert record.defect in record.path
        else:
            assert record.mask is None


@pytest.mark.parametrize(
    ("category", "expected"),
    [
        ("screw", ["screw"]),
        (["screw", "bottle", "screw"], ["screw", "bottle"]),
        (["all"], ["bottle", "screw"]),
    ],
)
def test_category_is_a_name_or_several(root, category, expected):
    assert MVTecAD(root, category=category).categories() == expected


def test_limits_are_per_category_mixed_and_seeded(root):
    source = MVTecAD(root, train_limit=4, test_limit=3, seed=5)
    assert [record.category for record in source.train()] == ["bottle"] * 4 + ["screw"] * 4
    assert [record.label for record in source.test() if record.category == "screw"].count(0) == 1
    assert source.test() == MVTecAD(root, train_limit=4, test_limit=3, seed=5).test()
    assert "at most 4 training images" in source.protocol
    assert "seed 5" in source.protocol


def test_missing_mask_is_counted_and_bare_stem_is_found(root):
    (root / "screw" / "ground_truth" / "hole" / "000_mask.png").unlink()
    folder = root / "screw" / "ground_truth" / "scratch"
    (folder / "001_mask.png").rename(folder / "001.png")
    test = MVTecAD(root, category="screw").test()
    assert len(unmasked(test)) == 1
    assert [record.mask for record in test if record.path.endswith("scratch/001.png")] == [str(folder / "001.png")]


def test_set_without_test_folder_is_fine(root):
    shutil.rmtree(root / "screw" / "test")
    assert MVTecAD(root, category="screw").test() == []


def test_missing_root_and_empty_root(tmp_path):
    for folder, found in ((tmp_path / "nope", "no such folder"), (tmp_path, "an empty folder")):
        text = error_of(MVTecAD(folder))
        assert f"{folder}/<category>/" in text
        assert found in text
        assert "download=true" in text


def test_root_that_is_a_category_or_holds_the_set(root):
    assert f"root={root} category=bottle" in error_of(MVTecAD(root / "bottle"))
    assert f"did you mean root={root}?" in error_of(MVTecAD(root.parent))


def test_unknown_category_names_the_nearest(root):
    text = error_of(MVTecAD(root, category="botle"))
    assert "did you mean bottle?" in text
    assert "bottle, screw" in text


def test_category_without_training_images(root):
    for path in (root / "screw" / "train" / "good").iterdir():
        path.unlink()
    assert f"no images in {root / 'screw' / 'train' / 'good'}" in error_of(MVTecAD(root))
    shutil.rmtree(root / "screw" / "train")
    assert "has no folder train/good" in error_of(MVTecAD(root, category="screw"))
    assert MVTecAD(root).categories() == ["bottle"]


def test_bad_arguments_are_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"category .*\[\]"):
        MVTecAD(tmp_path, category=[])
    with pytest.raises(ValueError, match=r"train_limit .*0"):
        MVTecAD(tmp_path, train_limit=0)


def test_other_image_kinds_and_mask_suffixes(tmp_path):
    write_image(tmp_path / "nut" / "train" / "good" / "a.JPG")
    write_image(tmp_path / "nut" / "test" / "bent" / "a.tiff")
    mask = write_mask(tmp_path / "nut" / "ground_truth" / "bent" / "a_mask.bmp")
    source = MVTecAD(tmp_path)
    assert len(source.train()) == 1
    assert [record.mask for record in source.test()] == [str(mask)]


def test_synthetic_is_written_on_first_use(tmp_path):
    source = Synthetic(tmp_path / "made", seed=1, size=32, train=3, test=7)
    assert "prepare()" in error_of(source)
    source.prepare()
    source.prepare()
    train, test = source.train(), source.test()
    assert len(train) == 3 * len(source.categories())
    assert len(test) == 7 * len(source.categories())
    assert not unmasked(test)
    one = Synthetic(tmp_path / "made", category=source.categories()[:1], seed=1, size=32, train=3, test=7)
    one.prepare()  # a choice of categories finds the same set
    assert one.train() == train[:3]
