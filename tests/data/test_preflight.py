import shutil

import numpy as np
import pytest
from makers import fake_mvtec, write_image, write_mask
from PIL import ExifTags, Image

from adlight.data.folder import Folder, LabelledFolder
from adlight.data.frames import Frame
from adlight.data.mvtec import MVTecAD
from adlight.data.preflight import check_before_training, find_copies, find_dark_images
from adlight.data.source import Source
from adlight.types import Record, UserError


@pytest.fixture
def bottle(tmp_path):
    return fake_mvtec(tmp_path, ("bottle",)) / "bottle"


def notes(bottle, **settings):
    return check_before_training(MVTecAD(bottle.parent, **settings), Frame(32))


def refusal(source, frame=None):
    with pytest.raises(UserError) as caught:
        check_before_training(source, frame or Frame(32))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sound_data_need_no_words(bottle):
    assert notes(bottle) == notes(bottle, train_limit=2, test_limit=4) == []


def save(array, path):
    Image.fromarray(array).save(path)


GREY = np.zeros((32, 32), np.uint8)
DAMAGES = {
    "test/hole/001.png": lambda path: path.write_bytes(path.read_bytes()[:-60]),
    "test/good/001.png": lambda path: path.write_bytes(b""),
    "test/scratch/001.png": lambda path: save(GREY[:3], path),
    "train/good/001.tiff": lambda path: save(GREY.astype(np.float32), path),
    "ground_truth/hole/002_mask.png": lambda path: save(GREY[:5, :5], path),
    "ground_truth/scratch/000_mask.png": lambda path: save(GREY + 255, path),
    "ground_truth/hole/nix_mask.png": write_mask,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_named(bottle, name):
    DAMAGES[name](bottle / name)
    assert str(bottle / name) in refusal(MVTecAD(bottle.parent))


def test_the_first_problem_is_told_and_the_others_counted(bottle):
    for name, damage in DAMAGES.items():
        damage(bottle / name)
    assert f"{len(DAMAGES) - 1} more" in refusal(MVTecAD(bottle.parent))
    (bottle / "ground_truth" / "hole" / "nix_mask.png").unlink()
    assert check_before_training(MVTecAD(bottle.parent), Frame(32), skip=True) == []  # what is skipped is told then


def test_too_thin_for_the_frame(bottle):
    write_image(bottle / "test" / "good" / "thin.png", size=(9, 900))
    assert "thin.png" in refusal(MVTecAD(bottle.parent), Frame(32, keep_shape=True))


def test_nothing_to_test(bottle):
    shutil.rmtree(bottle / "test")
    assert refusal(MVTecAD(bottle.parent)).startswith("nothing to test")


@pytest.mark.parametrize("name", ["Good", "normal", "OK"])
def test_normal_images_that_would_be_tested_as_defects(bottle, name):
    (bottle / "test" / "good").rename(bottle / "test" / name)
    assert f"{bottle}/test/{name} " in refusal(MVTecAD(bottle.parent))
    with pytest.raises(UserError, match=rf"test_normal_dir=.*/{name}$"):
        Folder(bottle, normal_dir="train", abnormal_dir="test").test()


def test_a_class_that_is_the_normal_one_but_for_its_case(tmp_path):
    for split, name in (("train", "cat"), ("test", "Cat"), ("test", "dog")):
        write_image(tmp_path / split / name / "0.png")
    assert f"{tmp_path}/test/Cat " in refusal(LabelledFolder(tmp_path, normal="cat"))


def test_two_images_or_two_masks_of_one_stem(bottle):
    masks = bottle / "ground_truth" / "hole"
    image = write_image(bottle / "test" / "hole" / "001.jpg")
    assert all(str(path) in refusal(MVTecAD(bottle.parent)) for path in (image, masks / "001_mask.png"))
    image.unlink()
    assert str(write_mask(masks / "001.png")) in refusal(MVTecAD(bottle.parent))


def test_a_mask_is_drawn_on_the_upright_image(bottle):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for name, size in (("a", (40, 24)), ("b", (24, 40))):
        Image.new("RGB", (40, 24)).save(bottle / "test" / "hole" / f"{name}.jpg", exif=exif)  # lies on its side
        write_mask(bottle / "ground_truth" / "hole" / f"{name}_mask.png", size)
    said = refusal(MVTecAD(bottle.parent))
    assert "b_mask.png is 40x24" in said and "b.jpg is 24x40" in said and "EXIF" in said


def test_what_is_left_out_is_counted_in_one_line(bottle):
    (bottle / "test" / "hole" / "x.webp").write_text("")
    (bottle / "train" / "good" / "lost.png").symlink_to("nowhere.png")
    (bottle / "test" / "dent").mkdir()
    stray = [write_image(bottle / place / "x.png") for place in ("test", "train/bad")]
    (line,) = notes(bottle, train_limit=2)
    assert all(said in line for said in ("1 .webp", "1 broken link", "1 empty folder", "2 images of neither split"))
    assert str(min(stray)) in line


def test_anomalies_without_masks_are_counted(bottle):
    shutil.rmtree(bottle / "ground_truth" / "hole")
    (line,) = notes(bottle)
    assert "3 of 6 anomalous images of bottle" in line and "test/hole/000.png" in line
    shutil.rmtree(bottle / "ground_truth")
    assert "6 of 6" in notes(bottle)[0]
    assert check_before_training(Folder(bottle, normal_dir="train", abnormal_dir="test/hole"), Frame(32)) == []


def test_images_that_were_trained_on_are_told(bottle):
    train, test = bottle / "train" / "good", bottle / "test" / "good"
    shutil.copy(train / "001.png", test / "copy.png")
    (test / "link.png").hardlink_to(train / "002.png")
    shutil.copy(train / "001.png", train / "twice.png")
    first, second = notes(bottle)
    assert first.startswith("2 test image") and f"{test}/copy.png and {train}/001.png" in first
    assert second.startswith("1 training image") and f"{train}/twice.png and {train}/001.png" in second


@pytest.mark.parametrize(("bits", "told"), [(12, 1), (16, 0)])
def test_images_of_12_bits_in_16_are_told(tmp_path, bits, told):
    pixels = np.random.default_rng(0).integers(0, 2**bits, (32, 32)).astype(np.uint16)
    for name in ("a.png", "b.tiff"):
        Image.fromarray(pixels).save(tmp_path / name)
    write_image(tmp_path / "c.png")
    lines = find_dark_images(
        [Record(str(tmp_path / name), "c") for name in ("c.png", "a.png", "b.tiff", "nowhere.png")]
    )
    assert len(lines) == told and all(f"{pixels.max()} of 65535" in line for line in lines)


def test_other_files_of_the_same_length_are_no_copies(tmp_path):
    split = [Record(str(tmp_path / f"{i}.bmp"), "c") for i in range(4)]
    for i, record in enumerate(split):
        pixels = np.full((64, 64), 9, np.uint8)
        pixels[1, 1] = i // 2  # where no sample is taken
        Image.fromarray(pixels).save(record.path)
    assert find_copies(split[:1], split[2:]) == []
    assert len(find_copies(split[:1], split[1:])) == 1


def test_a_source_that_reads_in_its_own_way_is_left_to_it():
    class Own(Source):
        def train(self):
            return [Record("train/0", "c")]

        def test(self):
            return [Record("test/0", "c")]

        def read(self, record):
            raise AssertionError("is not read before the training")

    assert check_before_training(Own(), Frame(32)) == []


def test_folders_that_may_not_be_read(bottle, forbid):
    forbid(bottle / "test" / "hole")
    assert f"{bottle}/test/hole: Permission denied" in refusal(MVTecAD(bottle.parent))


def test_one_folder_under_two_names(bottle):
    (bottle / "also").symlink_to(bottle / "train")
    with pytest.raises(ValueError, match="same folder"):
        Folder(bottle, normal_dir="train", abnormal_dir="also")
