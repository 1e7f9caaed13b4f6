import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch
from makers import fake_mvtec, write_image

from adlight.data.datamodule import AnomalyDataModule
from adlight.data.decoded import Decoded, open_or_write, select_rows, to_unit_range
from adlight.data.mvtec import MVTecAD
from adlight.types import UserError

SHAPE = (3, 4, 5)


def module(root, folder, **settings):
    sizes = dict(image_size=28, batch_size=4, eval_batch_size=3, val_fraction=0.25, num_workers=0, cache="disk")
    data = AnomalyDataModule(MVTecAD, root=root, **(sizes | {"cache_dir": str(folder)} | settings))
    data.setup()
    return data


@pytest.fixture
def root(tmp_path):
    return fake_mvtec(tmp_path / "data")


def batches(data):
    return [data.datasets[split].__getitems__(range(len(data.datasets[split]))) for split in ("train", "val", "test")]


def equal(one, other):
    return all(torch.equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in a)


def test_rows_are_copied_and_converted_exactly():
    stored = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    rows = torch.tensor([3, 0, 3])
    selected = select_rows(stored, rows)
    pixels = to_unit_range(selected.transpose(2, 3))
    assert torch.equal(selected, stored[rows])
    assert pixels.dtype == torch.float32 and torch.equal(pixels, stored[rows].transpose(2, 3).float() / 255)
    selected.zero_()
    assert torch.equal(stored.flatten(), torch.arange(256, dtype=torch.uint8))


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".locked")


@pytest.mark.parametrize("keep_shape", [False, True])
def test_images_on_disk_are_those_in_memory(root, tmp_path, keep_shape):
    in_memory = module(root, tmp_path / "a", cache="memory", keep_shape=keep_shape)
    on_disk = module(root, tmp_path / "a", keep_shape=keep_shape)
    assert equal(batches(in_memory), batches(on_disk)) and batches(on_disk)[2]["mask"].any()
    assert len(files(tmp_path / "a")) == 3 and all(name.endswith(".bin") for name in files(tmp_path / "a"))
    assert on_disk.train_dataloader().num_workers == 0


def test_a_later_run_reads_no_image(root, tmp_path, monkeypatch):
    first = batches(module(root, tmp_path / "a"))
    monkeypatch.setattr(MVTecAD, "read", lambda *_: pytest.fail("an image is decoded again"))
    assert equal(first, batches(module(root, tmp_path / "a")))


@pytest.mark.parametrize("settings", [{"image_size": 32}, {"channels": 1}, {"keep_shape": True}])
def test_other_settings_make_other_files(root, tmp_path, settings):
    module(root, tmp_path / "a")
    module(root, tmp_path / "a", **settings)
    assert len(files(tmp_path / "a")) == 6


def test_a_changed_image_is_decoded_again(root, tmp_path):
    data = module(root, tmp_path / "a")
    path = Path(data.datasets["train"].records[0].path)
    write_image(path, size=40)
    os.utime(path, ns=(1, 1))
    changed = module(root, tmp_path / "a")
    assert equal(batches(module(root, tmp_path / "b")), batches(changed)) and not equal(batches(data), batches(changed))


@pytest.mark.parametrize("place", [30, -3])
def test_a_damaged_file_is_named(root, tmp_path, place):
    data = module(root, tmp_path / "a")
    path = data.datasets["train"].file
    content = bytearray(path.read_bytes())
    content[place if place < 0 else 24 * len(data.datasets["train"]) + place] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match=path.name):
        batches(module(root, tmp_path / "a"))


def test_a_truncated_file_is_named(root, tmp_path):
    path = module(root, tmp_path / "a").datasets["train"].file
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=path.name):
        module(root, tmp_path / "a")


def test_unreadable_images_stay_left_out(root, tmp_path):
    broken = next((root / "bottle/train/good").iterdir())
    broken.write_bytes(broken.read_bytes()[:200])
    loaded = [module(root, tmp_path / "a", on_bad_image="skip") for _ in range(2)]
    assert equal(*map(batches, loaded)) and [str(broken) in data.skipped()[0] for data in loaded] == [True, True]
    with pytest.raises(UserError, match=broken.name):
        module(root, tmp_path / "a")


def test_size_and_processes_decide_where_images_are_kept(root, tmp_path):
    gigabytes = 8 * 28 * 28 * 4 / 1e9  # the training images'
    settings = {"cache": "auto", "cache_gb": gigabytes}
    kept = module(root, tmp_path / "a", **settings)
    assert [kept.datasets[split].file is None for split in ("train", "val")] == [True, True]
    two = AnomalyDataModule(MVTecAD, root=root, image_size=28, val_fraction=0.25, cache_dir=str(tmp_path), **settings)
    two._process = lambda: (0, 2)
    two.setup("fit")
    assert two.datasets["train"].file is not None and two.datasets["val"].file is None
    without = module(root, None, cache="auto", cache_gb=0, cache_dir=None)
    assert not any(dataset.cache for dataset in without.datasets.values())


def test_a_disk_without_a_folder_is_refused(root, tmp_path):
    with pytest.raises(UserError, match="cache_dir"):
        module(root, None, cache_dir=None)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        module(root, tmp_path / "file")


def slow_fill(path, log):
    def fill(decoded):
        with log.open("a") as file:
            file.write("filled\n")
        time.sleep(0.3)
        decoded.images.fill_(7)
        return [None] * 2

    decoded, _ = open_or_write(path, 2, SHAPE, False, fill)
    assert (decoded.images == 7).all() and not decoded.damaged([0, 1])


def test_one_process_writes_and_the_others_wait(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=slow_fill, args=(tmp_path / "x.bin", tmp_path / "log")) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "filled\n" and files(tmp_path) == ["log", "x.bin"]


def test_a_failure_leaves_no_file(tmp_path):
    def fail(decoded):
        raise UserError("unreadable")

    with pytest.raises(UserError, match="unreadable"):
        open_or_write(tmp_path / "x.bin", 2, SHAPE, True, fail)
    assert files(tmp_path) == []


def test_what_lies_where():
    decoded = Decoded(2, SHAPE, True)
    assert decoded.images.shape == (2, 3, 4, 5) and decoded.masks.shape == (2, 4, 5) and decoded.sizes.shape == (2, 2)
    assert decoded.nbytes == 2 * (16 + 8 + 60 + 20)
