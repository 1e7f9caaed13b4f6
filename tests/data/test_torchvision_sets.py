import os
import pickle

import numpy as np
import pytest
from makers import fake_cifar10, fake_mnist

from adlight.data.torchvision_sets import CIFAR10, MNIST
from adlight.types import Record, UserError


@pytest.fixture
def unchecked(monkeypatch):
    """Torchvision accepts CIFAR-10 files by their MD5 only; a fake has another one."""
    from torchvision.datasets import cifar

    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: os.path.isfile(path))


def test_mnist_trains_on_one_digit_and_tests_on_all(tmp_path):
    source = MNIST(fake_mnist(tmp_path), normal=2)
    train, test = source.train(), source.test()
    assert [record.path for record in train] == [f"train/{i:05d}" for i in range(2, 60, 10)]
    assert len(test) == 40
    assert test[12] == Record("test/00012", "2")
    assert test[13] == Record("test/00013", "2", "3", 1)
    assert source.protocol == "MNIST, digit 2 normal, all 10,000 test images"


def test_mnist_reads_the_recorded_image(tmp_path):
    source = MNIST(fake_mnist(tmp_path), normal="7")
    image = source.read(source.test()[15])
    assert (image.mode, image.size) == ("L", (28, 28))
    assert np.asarray(image).max() == np.asarray(image).min() == 5
    assert source.read_mask(source.test()[15], image.size) is None
    assert np.asarray(pickle.loads(pickle.dumps(source)).read(source.train()[0])).max() == 7


def test_mnist_limits_are_seeded_and_mixed(tmp_path):
    fake_mnist(tmp_path)
    source = MNIST(tmp_path, normal=0, train_limit=3, test_limit=20, seed=4)
    assert len(source.train()) == 3
    assert [record.label for record in source.test()].count(0) == 2
    assert source.test() == MNIST(tmp_path, normal=0, test_limit=20, seed=4).test()
    assert source.test() != MNIST(tmp_path, normal=0, test_limit=20, seed=5).test()
    assert "at most 20 mixed test images" in source.protocol


@pytest.mark.parametrize("normal", ["automobile", 1, "1"])
def test_cifar_tests_as_many_others_as_normals(tmp_path, unchecked, normal):
    source = CIFAR10(fake_cifar10(tmp_path), normal=normal, balanced_test=True)
    train, test = source.train(), source.test()
    assert (len(train), len(test)) == (10, 4)
    assert [record.label for record in test].count(1) == 2
    assert {record.category for record in train + test} == {"automobile"}
    assert source.protocol.startswith("CIFAR-10, automobile normal, its test images and as many of")
    image = source.read(test[0])
    assert (image.mode, image.size) == ("RGB", (32, 32))


def test_cifar_draw_follows_the_seed_and_may_be_left_out(tmp_path, unchecked):
    fake_cifar10(tmp_path)
    assert (
        CIFAR10(tmp_path, normal=1, balanced_test=True, seed=1).test()
        == CIFAR10(tmp_path, normal=1, balanced_test=True, seed=1).test()
    )
    assert (
        CIFAR10(tmp_path, normal=1, balanced_test=True, seed=1).test()
        != CIFAR10(tmp_path, normal=1, balanced_test=True, seed=2).test()
    )
    source = CIFAR10(tmp_path, normal=1)
    assert len(source.test()) == 20
    assert source.test()[3].defect == "cat"
    assert "all 10,000" in source.protocol


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: MNIST("x", normal=12), ("normal", "'12'", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9")),
        (lambda: CIFAR10("x", normal="plane"), ("did you mean airplane?", "frog, horse, ship, truck")),
        (lambda: CIFAR10("x", normal=10), ("'10'", "automobile")),
        (lambda: MNIST("x", normal=0, test_limit=0), ("test_limit", "0")),
    ],
)
def test_wrong_arguments_name_the_choices(make, parts):
    with pytest.raises(ValueError) as caught:
        make()
    assert all(part in str(caught.value) for part in parts)


@pytest.mark.parametrize("kind", [MNIST, CIFAR10])
def test_missing_files_name_folder_and_remedy(tmp_path, kind):
    with pytest.raises(UserError) as caught:
        kind(tmp_path, normal=0).train()
    assert str(tmp_path / kind.files) in str(caught.value)
    assert "download=true" in str(caught.value)
    assert "\n" not in str(caught.value)


def number(data, at, value):
    return data[:at] + value.to_bytes(4, "big") + data[at + 4 :]


IMAGES, LABELS = "images-idx3", "labels-idx1"


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *((IMAGES, lambda data, size=size: data[:size]) for size in (0, 10, 5000)),
        (IMAGES, lambda data: data + bytes(784)),
        (IMAGES, lambda data: number(data[:-784], 4, 39)),  # one image less than labels
        (IMAGES, lambda data: number(number(data, 8, 14), 12, 56)),
        (IMAGES, lambda data: b"<html>not found</html>" * 99),
        (LABELS, lambda data: number(data[:-1], 4, 39)),
        (LABELS, lambda data: data + bytes(5)),
        (LABELS, lambda data: data[:-1] + b"\x0c"),
    ],
)
def test_a_damaged_file_of_mnist_is_named(tmp_path, kind, change):
    path = fake_mnist(tmp_path) / "MNIST" / "raw" / f"t10k-{kind}-ubyte"
    path.write_bytes(change(path.read_bytes()))
    source = MNIST(tmp_path, normal=0)
    assert len(source.train()) == 6
    with pytest.raises(UserError) as caught:
        source.test()
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_download_is_torchvisions_and_its_failure_one_line(tmp_path, monkeypatch):
    from torchvision import datasets

    asked = []

    def fail(self):
        asked.append(self.root)
        raise RuntimeError("x:\ny")

    monkeypatch.setattr(datasets.MNIST, "download", fail)
    MNIST(tmp_path, normal=0).prepare()
    assert asked == []
    with pytest.raises(UserError, match=rf"x: y.*{tmp_path}/MNIST/raw"):
        MNIST(tmp_path, normal=0, download=True).prepare()
    assert asked == [str(tmp_path)]
