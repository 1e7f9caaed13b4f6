import shutil

import numpy as np
import pytest
from makers import fake_mvtec, write_image, write_mask
from PIL import Image
from processes import call


@pytest.fixture
def ask(tmp_path):
    """Runs the command on the data set `data`; returns its exit code, its problems and all that it printed."""

    def run(*words):
        code, printed, errors = call(tmp_path, "doctor", *words)
        return code, [line for line in printed.splitlines() if line.startswith("problem: ")], printed + errors

    return run


MVTEC = ("dataset=mvtec", "dataset.root=data")


def test_machine(ask, tmp_path):
    code, _, printed = ask()
    assert code in (0, 1)  # this machine may have a fault of its own
    assert all(word in printed for word in ("python", "cores", "GB free", "GPU", "torch", "AlexNet", "W&B key"))
    assert not list(tmp_path.iterdir())  # it leaves nothing behind


def test_sound_data(ask, tmp_path):
    fake_mvtec(tmp_path / "data")
    code, problems, printed = ask(*MVTEC)
    assert (code, problems) == (0, []) and "all fine" in printed
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "bottle" in line]
    assert rows[0] == ["bottle", "train", "6", "0", "0", "0", "32x32 RGB (6)"]
    assert rows[1] == ["bottle", "test", "3", "6", "6", "0", "32x32 RGB (9)"]


def test_what_the_held_out_images_can_promise(ask, tmp_path):
    fake_mvtec(tmp_path / "data", ("bottle",), train=40)
    promises = {
        "dataset.val_fraction=0.15": ("fpr:0.05 of 6 ", "0.143", "19 are needed", "dataset.val_fraction=0.48"),
        "calibration.image=fpr:0.02": ("fpr:0.02 of 4 ", "0.2", "49 are needed", "add normal images"),
        "dataset.val_fraction=0.48": ("fpr:0.05 of 19 ", "at most 0.05"),
        "calibration.image=sigma:3": ("sigma:3 of 4 ",),
        "model=mae_small dataset.image_size=32": ("fpr:0.05 of 4 ", "0.2"),
        "model=retrieval dataset.image_size=32": ("fpr:0.05 of 40 ", "about 0.0488"),  # it cross-fits the other 36
        "model=retrieval calibration.image=fpr:0.02": ("fpr:0.02 of 40 ", "0.0244", "49 are needed"),
    }
    for words, parts in promises.items():
        code, _, printed = ask(*MVTEC, *words.split())
        (line,) = (line for line in printed.splitlines() if line.startswith("thresholds of bottle"))
        assert code == 0 and all(part in line for part in parts), line


@pytest.mark.parametrize(
    "word", ["calibration.image=fpr:2", "seed=-1", "dataset.keep_shape=no", "dataset.train_limit=0", "dataset.rot=x"]
)
def test_a_bad_setting_is_told_before_anything_is_read(ask, word):
    code, _, printed = ask(*MVTEC, word)
    key = word.partition("=")[0].rpartition(".")[2]
    assert code == 2 and key in printed and "this machine" not in printed


def damage(bottle):
    """Plant one fault of each kind; returns the words by which each must be named."""
    cut = bottle / "train" / "good" / "001.png"
    cut.write_bytes(cut.read_bytes()[:-100])
    Image.open(bottle / "train" / "good" / "002.png").save(bottle / "test" / "good" / "zz.bmp")  # another format
    Image.new("L", (5, 5)).save(bottle / "ground_truth" / "hole" / "001_mask.png")
    Image.new("L", (32, 32)).save(bottle / "ground_truth" / "hole" / "002_mask.png")
    (bottle / "ground_truth" / "scratch" / "001_mask.png").unlink()
    write_mask(bottle / "ground_truth" / "hole" / "nix_mask.png")
    return [
        ("cannot read image data/bottle/train/good/001.png", "fix or remove"),
        ("data/bottle/test/good/zz.bmp", "data/bottle/train/good/002.png", "remove one"),
        ("mask data/bottle/ground_truth/hole/001_mask.png is 5x5", "data/bottle/test/hole/001.png is 32x32"),
        ("data/bottle/ground_truth/hole/002_mask.png", "marks nothing"),
        ("1 of 6 anomalous images of bottle", "data/bottle/test/scratch/001.png"),
        ("data/bottle/ground_truth/hole/nix_mask.png has no image",),
    ]


def test_planted_faults(ask, tmp_path):
    fake_mvtec(tmp_path / "data")
    wanted = damage(tmp_path / "data" / "bottle")
    (tmp_path / "data" / "bottle" / "train" / "good" / "x.webp").write_text("not read")
    code, problems, printed = ask(*MVTEC)
    assert code == 1 and len(problems) == len(wanted) and f"{len(wanted)} problem(s)" in printed
    for words in wanted:
        assert any(all(word in problem for word in words) for problem in problems), words
    assert "left out: " in printed and "1 .webp" in printed
    assert ask(*MVTEC, "dataset.category=screw")[0] == 0  # the other category is sound


def test_sizes_modes_and_limits(ask, tmp_path):
    fake_mvtec(tmp_path / "data", ("bottle",))
    folder = tmp_path / "data" / "bottle" / "train" / "good"
    for i, size in enumerate((20, 24, 28)):
        write_image(folder / f"other{i}.png", i, size, channels=1)
    Image.fromarray(np.full((9, 9), 0.5, np.float32)).save(folder / "float.tiff")
    code, problems, printed = ask(*MVTEC, "dataset.train_limit=2")  # all is looked at, whatever the limits
    assert code == 1 and "float.tiff" in problems[0] and "floating-point" in problems[0]
    assert "32x32 RGB (6), 20x20 L (1), 24x24 L (1), 1 more" in printed


def test_the_shapes_of_the_training_images_choose_an_image_size(ask, tmp_path):
    fake_mvtec(tmp_path / "data", ("bottle",), size=(40, 100))
    write_image(tmp_path / "data" / "bottle" / "test" / "good" / "tall.png", size=(100, 20))  # not looked at
    code, _, printed = ask(*MVTEC, "dataset.image_size=320")
    assert code == 0 and "2.50 (6)" in printed and "0.20" not in printed and "dataset.image_size=[320,800]" in printed
    for model, size in (("retrieval", "[320,800]"), ("mae", "[224,560]")):
        _, _, printed = ask(*MVTEC, f"model={model}")
        assert f"dataset.image_size={size}" in printed and f"model={model}" in printed
    assert ask("model=mae")[0] == 2


def test_what_is_missing(ask, tmp_path):
    code, problems, _ = ask(*MVTEC)
    assert code == 1 and len(problems) == 1 and "no categories in" in problems[0]
    fake_mvtec(tmp_path / "data", ("bottle",), train=1)
    code, problems, _ = ask(*MVTEC)
    assert code == 1 and "too few to hold out" in problems[0]
    shutil.rmtree(tmp_path / "data")
    assert ask("dataset.root=data")[0] == 2
    code, _, printed = ask("dataset=folder")
    assert code == 2 and "dataset.normal_dir" in printed


def test_own_folder(ask, tmp_path):
    for i in range(10):
        write_image(tmp_path / "mine" / "good" / f"{i}.png", i)
    shutil.copytree(tmp_path / "mine" / "good", tmp_path / "mine" / "bad")
    words = ("dataset=folder", "dataset.root=mine", "dataset.normal_dir=good")
    write_image(tmp_path / "mine" / "masks" / "0.png")
    (tmp_path / "mine" / "notes").mkdir()
    code, _, printed = ask(*words)
    (line,) = (line for line in printed.splitlines() if "abnormal_dir=bad" in line)
    assert code == 0 and "mask_dir=masks" in line and "notes" not in line and "good" not in line
    code, problems, printed = ask(*words, "dataset.abnormal_dir=bad")
    assert "abnormal_dir=bad" not in printed and "mask_dir=masks" in printed
    assert code == 1 and len(problems) == 8  # the normal images that are trained on, all but the two held out
