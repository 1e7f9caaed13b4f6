import pytest
from makers import write_image, write_mask

from adlight.data.folder import Folder, LabelledFolder
from adlight.types import UserError


@pytest.fixture
def root(tmp_path):
    """Ten good images; bad ones of two kinds, `hole/0`, `hole/1` and `cut/0`."""
    root = tmp_path / "screws"
    for i in range(10):
        write_image(root / "good" / f"{i}.png", i)
    for i, name in enumerate(("hole/0", "hole/1", "cut/0")):
        write_image(root / "bad" / f"{name}.png", 50 + i)
    return root


def own(root, **rest):
    return Folder(root, normal_dir="good", **rest)


def fails(call, *parts, error=UserError):
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert all(str(part) in text for part in parts), text


def test_normals_are_split_by_seed_without_overlap(root):
    source = own(root, abnormal_dir="bad")
    train, test = source.train(), source.test()
    held_out = [record for record in test if record.label == 0]
    assert (len(train), len(held_out), len(test)) == (8, 2, 5)
    assert not set(train) & set(held_out)
    assert test == own(root, abnormal_dir="bad").test()
    assert train != own(root, abnormal_dir="bad", seed=1).train()


def test_defect_is_the_sub_folder_or_the_folder(root):
    write_image(root / "bad" / "flat.png")
    test = own(root, abnormal_dir="bad").test()
    assert [record.defect for record in test if record.label] == ["cut", "bad", "hole", "hole"]


@pytest.mark.parametrize(("normal", "category"), [("good", "screws"), ("m6", "m6"), ("../screws/good", "screws")])
def test_category_is_a_folder_name_that_says_something(root, normal, category):
    write_image(root / "m6" / "0.png")
    assert {record.category for record in Folder(root, normal_dir=normal).train()} == {category}


def test_without_anomalies_the_held_out_normals_are_tested(root):
    source = own(root, normal_test_fraction=0.3)
    assert (len(source.train()), [record.label for record in source.test()]) == (7, [0, 0, 0])
    assert own(root, normal_test_fraction=0).test() == []


def test_test_normal_dir_leaves_all_normals_to_training(root):
    write_image(root / "good" / "later" / "0.png")
    source = own(root, test_normal_dir="good/later", abnormal_dir=root / "bad")
    assert len(source.train()) == 10  # the nested test folder is not trained on
    assert [record.label for record in source.test()] == [0, 1, 1, 1]


@pytest.mark.parametrize("names", [("hole/0", "hole/1", "cut/0"), ("hole/0_mask", "hole/1", "cut/0_mask")])
def test_masks_in_sub_folders(root, names):
    for name in names:
        write_mask(root / "bad" / "masks" / f"{name}.bmp")  # masks may lie among the images
    test = own(root, abnormal_dir="bad", mask_dir="bad/masks").test()
    assert all(record.mask for record in test if record.label)
    assert [record.mask for record in test if record.defect == "cut"] == [f"{root}/bad/masks/{names[2]}.bmp"]


def test_flat_masks_and_images_without_one(root):
    write_mask(root / "masks" / "1_mask.png")
    test = own(root, abnormal_dir="bad", mask_dir="masks").test()
    assert [record.path[-10:] for record in test if record.mask] == ["hole/1.png"]
    assert sum(record.mask is None for record in test if record.label) == 2


def test_ambiguous_and_unmatched_masks(root):
    source = own(root, abnormal_dir="bad", mask_dir="masks")
    mask = write_mask(root / "masks" / "0.png")
    fails(source.test, mask, "belongs to two images", "cut/0.png", "hole/0.png")
    mask.unlink()
    masks = write_mask(root / "masks" / "hole" / "1.png"), write_mask(root / "masks" / "hole" / "1_mask.png")
    fails(source.test, "two masks", *masks)
    masks[0].unlink()
    fails(source.test if write_mask(root / "masks" / "7.png") else None, "masks/7.png has no image")


def test_folders_that_are_missing_empty_or_the_same(root):
    fails(Folder(root, normal_dir="god").train, "normal_dir", root / "god", "bad, good")
    (root / "empty").mkdir()
    fails(own(root, abnormal_dir="empty").test, "abnormal_dir", "an empty folder")
    fails(lambda: own(root, abnormal_dir="good"), "the same folder", error=ValueError)
    fails(lambda: own(root, mask_dir="bad"), "needs abnormal_dir", error=ValueError)
    fails(lambda: own(root, normal_test_fraction=1.0), "normal_test_fraction", "1.0", error=ValueError)
    fails(lambda: own(root, normal_test_fraction=-0.1), "normal_test_fraction", "-0.1", error=ValueError)


def test_good_images_among_the_abnormal_ones(root):
    write_image(root / "bad" / "good" / "0.png")
    fails(own(root, abnormal_dir="bad").test, f"test_normal_dir={root / 'bad' / 'good'}")
    test = own(root, abnormal_dir="bad", test_normal_dir="bad/good").test()
    assert [record.label for record in test] == [0, 1, 1, 1]


@pytest.fixture
def classes(tmp_path):
    for c, name in enumerate(("cat", "dog", "ship")):
        for i in range(4):
            write_image(tmp_path / "train" / name / f"{i}.jpg", 10 * c + i)
            write_image(tmp_path / "test" / name / f"{i}.jpg", 100 + 10 * c + i)
    return tmp_path


def test_labelled_folder_has_one_normal_class(classes):
    source = LabelledFolder(classes, normal="dog")
    assert [record.defect for record in source.train()] == ["good"] * 4
    assert [record.defect for record in source.test()] == ["cat"] * 4 + ["good"] * 4 + ["ship"] * 4
    assert [record.label for record in source.test()] == [1] * 4 + [0] * 4 + [1] * 4
    assert {record.category for record in source.test()} == {"dog"}
    assert "dog normal" in source.protocol


def test_labelled_folder_limits_and_balance(classes):
    source = LabelledFolder(classes, normal="dog", train_limit=2, test_limit=6, balanced_test=True, seed=1)
    assert len(source.train()) == 2
    assert [record.label for record in source.test()].count(1) == 3


def test_labelled_folder_errors(classes, tmp_path):
    fails(LabelledFolder(classes, normal="shop").train, "did you mean ship?", "cat, dog, ship")
    fails(LabelledFolder(classes / "train", normal="cat").train, "{train,test}/<class>", "found cat, dog, ship")
    (classes / "train" / "bird").mkdir()
    fails(LabelledFolder(classes, normal="bird").train, classes / "train" / "bird")


@pytest.mark.parametrize("name", ["masks", "Ground_Truth", "mask"])
def test_masks_are_not_taken_for_images(root, name):
    write_mask(root / "bad" / name / "hole" / "0.png")
    fails(own(root, abnormal_dir="bad").test, "abnormal_dir", f"{name}/hole/0.png", "mask_dir")
    assert own(root, abnormal_dir="bad", mask_dir=f"bad/{name}").test()
    write_mask(root / "good" / name / "0.png")
    fails(own(root).train, "normal_dir", f"{name}/0.png")
    fails(Folder(root, normal_dir=f"good/{name}").train, "normal_dir", f"{name}/0.png")
