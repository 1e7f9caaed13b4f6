import hashlib
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from makers import fake_mvtec, write_image, write_mask

from adlight.data.augmentation import Augmentation
from adlight.data.datamodule import AnomalyDataModule
from adlight.data.mvtec import MVTecAD, Synthetic
from adlight.data.pseudo_anomalies import paste_defect
from adlight.data.splits import split_normals
from adlight.rng import derive_seed
from adlight.types import Record, UserError


def module(root, **settings):
    sizes = dict(image_size=28, batch_size=4, eval_batch_size=3, val_fraction=0.25, num_workers=0)
    return AnomalyDataModule(MVTecAD, root=root, **(sizes | settings))


def loaded(root, stage="fit", **settings):
    data = module(root, **settings)
    data.setup(stage)
    return data


@pytest.fixture
def root(tmp_path):
    return fake_mvtec(tmp_path / "data")


def records(count, category="a"):
    return [Record(f"{category}/{i}", category) for i in range(count)]


def epoch(loader, number=0):
    loader.sampler.set_epoch(number) if hasattr(loader.sampler, "set_epoch") else None
    return list(loader)


def equal(one, other):
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in zip(one, other, strict=True)
    )


def hashes(images):
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images]


# the shares of processes


class FakeTrainer:
    training, global_rank, world_size = True, 0, 1
    fit_loop = SimpleNamespace(total_batch_idx=0)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("split", ["val", "test"])
def test_processes_share_every_image_exactly_once(root, split, world):
    data, parts = loaded(root, None), []
    data.trainer = FakeTrainer()
    data.trainer.world_size = world
    for rank in range(world):
        data.trainer.global_rank = rank
        loader = getattr(data, f"{split}_dataloader")()
        parts.append(torch.cat([batch["index"] for batch in loader]).tolist())
    assert sorted(index for part in parts for index in part) == list(range(18 if split == "test" else 8))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1 and all(part == sorted(part) for part in parts)


# the split


def test_split_is_disjoint_complete_and_by_seed():
    mine = records(20) + records(5, "b")
    train, held_out = split_normals(mine, 0.25, 0)
    assert sorted(train + held_out) == sorted(mine) and not set(train) & set(held_out)
    assert [sum(record.category == name for record in held_out) for name in "ab"] == [5, 1]
    assert split_normals(mine, 0.25, 0) == (train, held_out)
    assert split_normals(mine, 0.25, 1) != (train, held_out)


def test_each_category_is_split_on_its_own():
    alone = split_normals(records(20), 0.25, 3)[1]
    assert [r for r in split_normals(records(20) + records(9, "b"), 0.25, 3)[1] if r.category == "a"] == alone


@pytest.mark.parametrize(("count", "fraction", "held_out"), [(2, 0.01, 1), (10, 0.01, 1), (10, 0.1, 1), (10, 0.5, 5)])
def test_at_least_one_image_is_held_out(count, fraction, held_out):
    assert [len(part) for part in split_normals(records(count), fraction, 0)] == [count - held_out, held_out]


@pytest.mark.parametrize(("count", "fraction"), [(1, 0.1), (2, 0.9)])
def test_category_that_cannot_be_parted_is_named(count, fraction):
    with pytest.raises(UserError, match=rf"category b has {count} normal.*val_fraction={fraction}"):
        split_normals(records(10) + records(count, "b"), fraction, 0)


def test_splits_share_no_image_on_generated_data(tmp_path):
    settings = dict(root=tmp_path, size=32, train=8, test=6)
    data = AnomalyDataModule(Synthetic, image_size=32, batch_size=4, val_fraction=0.25, **settings)
    data.prepare_data()
    data.setup()
    content = {name: hashes(data.datasets[name].images) for name in ("train", "val", "test")}
    together = [one for part in content.values() for one in part]
    assert len(set(together)) == len(together)
    categories = len(data.categories)
    assert categories > 1 and len(content["train"]) == 6 * categories and len(content["val"]) == 2 * categories
    assert sorted(data.datasets["val"].category.tolist()) == sorted(list(range(categories)) * 2)


# what is read, and when


def test_training_needs_no_test_split(root):
    whole = loaded(root)
    for category in ("bottle", "screw"):
        shutil.rmtree(root / category / "test")
        shutil.rmtree(root / category / "ground_truth")
    data = module(root)
    data.prepare_data()
    data.setup("fit")
    data.setup("validate")
    assert equal(epoch(data.train_dataloader()), epoch(whole.train_dataloader()))
    assert equal(epoch(data.val_dataloader()), epoch(whole.val_dataloader()))
    with pytest.raises(UserError, match="nothing to test: MVTec AD layout"):
        data.setup("test")


def test_training_reads_training_images_only(root, monkeypatch):
    data, paths = module(root), []
    read = data.source.read
    monkeypatch.setattr(data.source, "test", lambda: pytest.fail("the test split is listed"))
    monkeypatch.setattr(data.source, "read", lambda record: paths.append(record.path) or read(record))
    data.setup("fit")
    epoch(data.train_dataloader())
    epoch(data.val_dataloader())
    assert len(paths) == 12 and all("/train/good/" in path for path in paths)


def test_later_epochs_touch_no_file(root):
    data = loaded(root, None)
    shutil.rmtree(root)
    loaders = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    first = [epoch(loader) for loader in loaders]
    assert all(equal(epoch(loader), batches) for loader, batches in zip(loaders, first, strict=True))
    assert not equal(epoch(loaders[0], 1), first[0])
    assert sorted(torch.cat([batch["index"] for batch in epoch(loaders[0], 1)]).tolist()) == list(range(8))


def test_setup_decodes_once(root, monkeypatch):
    data = loaded(root)
    data.setup("test")
    monkeypatch.setattr(data.source, "read", lambda record: pytest.fail("read again"))
    datasets = dict(data.datasets)
    for stage in ("fit", "validate", "test", None):
        data.setup(stage)
    assert data.datasets == datasets


def test_without_cache_batches_are_the_same(root):
    cached, fresh = loaded(root, None), loaded(root, None, cache_gb=0)
    assert [dataset.cache for dataset in fresh.datasets.values()] == [False] * 3
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        one, other = getattr(cached, name)(), getattr(fresh, name)()
        for number in range(2):
            assert equal(epoch(one, number), epoch(other, number))


def test_worker_processes_give_the_same_batches(root):
    cached, workers = loaded(root), loaded(root, cache_gb=0, num_workers=1)
    loader = workers.val_dataloader()
    assert loader.num_workers == 1 and cached.val_dataloader().num_workers == 0
    assert equal(epoch(cached.val_dataloader()), list(loader))


@pytest.mark.parametrize(("gigabytes", "cached"), [(8 * 28 * 28 * 4 / 1e9, True), (7.9 * 28 * 28 * 4 / 1e9, False)])
def test_splits_that_do_not_fit_are_not_cached(root, gigabytes, cached):
    data = loaded(root, cache_gb=gigabytes)
    assert data.datasets["train"].cache is cached
    assert data.datasets["val"].cache  # a quarter of the images


# batches


def test_training_batches(root):
    data = loaded(root, seed=4)
    batches = epoch(data.train_dataloader())
    assert [len(batch["image"]) for batch in batches] == [4, 4] and data.categories == ["bottle", "screw"]
    for batch in batches:
        assert (batch["image"].shape, batch["image"].dtype) == ((4, 3, 28, 28), torch.uint8)
        assert batch["label"].tolist() == [0] * 4 and batch["label"].dtype == torch.int64
        assert (batch["mask"].shape, batch["mask"].dtype) == ((4, 28, 28), torch.bool) and not batch["mask"].any()
        names = [data.records("train")[i].category for i in batch["index"]]
        assert [data.categories[c] for c in batch["category"]] == names
    assert not equal(epoch(loaded(root, seed=5).train_dataloader()), batches)


def test_test_batches_have_labels_masks_and_every_record_once(root):
    data = loaded(root, "test")
    batches = epoch(data.test_dataloader())
    assert [len(batch["image"]) for batch in batches] == [3] * 6
    merged = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    assert merged["index"].tolist() == list(range(18))
    assert merged["label"].tolist() == [record.label for record in data.records("test")]
    assert torch.equal(merged["mask"].flatten(1).any(1), merged["label"] == 1)
    share = merged["mask"][merged["label"] == 1].float().mean((1, 2))
    torch.testing.assert_close(share, torch.full_like(share, 1 / 16))  # a quarter of each side
    assert not merged["mask"][:, 7:].any() and not merged["mask"][:, :, 7:].any()


def test_categories_of_the_test_alone_come_last(root):
    data = module(root)
    shutil.rmtree(root / "bottle" / "train")
    data.setup("fit")
    (root / "bottle" / "train" / "good").mkdir(parents=True)
    data.setup("test")
    assert data.categories == ["screw", "bottle"]
    assert data.datasets["test"].category.tolist() == [1] * 9 + [0] * 9


def test_batches_become_floats_between_0_and_1(root):
    data = loaded(root, "test")
    batch = next(iter(data.test_dataloader()))
    before = batch["image"].clone()
    after = data.on_after_batch_transfer(batch, 0)["image"]
    assert after.dtype == torch.float32 and after.min() >= 0 and after.max() <= 1
    assert torch.equal((after * 255).round().to(torch.uint8), before)


def test_only_training_batches_are_augmented_by_seed_batch_and_process(root):
    data = loaded(root, augmentation=Augmentation(crop=0.5), seed=1)
    data.trainer = FakeTrainer()
    batch = next(iter(data.train_dataloader()))

    def after(training=True, global_rank=0, batch_idx=3):
        data.trainer.training, data.trainer.global_rank, data.trainer.world_size = training, global_rank, 2
        data.trainer.fit_loop = SimpleNamespace(total_batch_idx=batch_idx)
        return data.on_after_batch_transfer(dict(batch), 0)["image"]

    plain = batch["image"].float() / 255
    assert torch.equal(after(training=False), plain)
    assert not torch.equal(after(), plain) and torch.equal(after(), after())
    drawn = [after(), after(global_rank=1), after(batch_idx=4), after(global_rank=1, batch_idx=4)]
    data.seed = 2
    drawn.append(after())
    assert all(not torch.equal(drawn[i], drawn[j]) for i in range(5) for j in range(i))


def test_grey_images(root):
    data = loaded(root, channels=1)
    assert next(iter(data.train_dataloader()))["image"].shape == (4, 1, 28, 28)


# pseudo-anomalies


@pytest.mark.parametrize("cache_gb", [8.0, 0.0])
def test_pseudo_anomalies_are_labelled_and_leave_the_normals_alone(root, cache_gb):
    data = loaded(root, cache_gb=cache_gb, val_fraction=0.5, seed=2)
    dataset = data.datasets["val"]
    kept = dataset.__getitems__(range(len(dataset)))["image"].clone()
    for _ in range(2):
        batches = epoch(data.val_dataloader())
        merged = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
        assert merged["index"].tolist() == list(range(2 * len(dataset)))
        assert merged["label"].tolist() == [0, 1] * len(dataset)
        assert merged["category"][::2].tolist() == merged["category"][1::2].tolist() == dataset.category.tolist()
        assert torch.equal(merged["image"][::2], kept) and not merged["mask"][::2].any()
        changed = (merged["image"][1::2] != kept).any(1)
        assert torch.equal(changed, merged["mask"][1::2]) and changed.flatten(1).any(1).all()
    wanted = paste_defect(kept[1], torch.Generator().manual_seed(derive_seed("defect", 2, 1)))
    assert torch.equal(merged["image"][3], wanted[0]) and torch.equal(merged["mask"][3], wanted[1])
    assert torch.equal(dataset.__getitems__(range(len(dataset)))["image"], kept)


def test_several_copies_of_an_image_have_defects_of_their_own(root):
    few, many = (loaded(root, val_fraction=0.5, val_defects=count) for count in (1, 3))
    first, whole = (
        {key: torch.cat([batch[key] for batch in batches]) for key in ("image", "label", "mask")}
        for batches in (epoch(few.val_dataloader()), epoch(many.val_dataloader()))
    )
    images = whole["image"].unflatten(0, (-1, 4))
    assert whole["label"].tolist() == [0, 1, 1, 1] * len(images)
    assert torch.equal(images[:, :2].flatten(0, 1), first["image"])  # the first copy is what it is alone
    assert all(len(copies.unique(dim=0)) == 4 for copies in images)
    assert torch.equal(whole["mask"].unflatten(0, (-1, 4)), (images != images[:, :1]).any(2))


def test_pseudo_anomalies_depend_on_the_seed(root):
    one, other = (loaded(root, val_fraction=0.5) for _ in range(2))
    other.seed = 1
    first, second = epoch(one.val_dataloader()), epoch(other.val_dataloader())
    assert torch.equal(first[0]["image"][0], second[0]["image"][0])
    assert not torch.equal(first[0]["image"][1], second[0]["image"][1])


# bad input


def damage(root, category="screw", name="002.png"):
    path = root / category / "train" / "good" / name
    path.write_bytes(path.read_bytes()[:200])
    return path


@pytest.mark.parametrize("cache_gb", [8.0, 0.0])
def test_bad_image_is_named(root, cache_gb):
    path, data = damage(root), module(root, cache_gb=cache_gb)
    with pytest.raises(UserError, match="cannot read image") as caught:
        data.setup("fit")
        [list(loader) for loader in (data.train_dataloader(), data.val_dataloader())]
    assert str(path) in str(caught.value) and "on_bad_image=skip" in str(caught.value)


def test_decoder_that_throws_anything_names_the_image(root, monkeypatch):
    data = module(root)
    monkeypatch.setattr(data.source, "read", lambda record: 1 / 0)
    with pytest.raises(UserError, match=r"cannot read image .*\.png: division by zero"):
        data.setup("fit")


@pytest.mark.parametrize("cache_gb", [8.0, 0.0])
def test_bad_images_are_left_out_and_recorded(root, cache_gb):
    train, tested = damage(root), root / "bottle" / "test" / "hole" / "001.png"
    tested.write_bytes(b"not an image")
    data = loaded(root, None, on_bad_image="skip", cache_gb=cache_gb)
    assert [str(train) in data.skipped()[0], str(tested) in data.skipped()[1]] == [True, True]
    assert len(data.skipped()) == 2
    assert len(data.records("train")) + len(data.records("val")) == 11 and len(data.records("test")) == 17
    paths = [record.path for split in ("train", "val", "test") for record in data.records(split)]
    assert str(train) not in paths and str(tested) not in paths
    whole = {record.path: record for record in data.source.test()}
    for batch in data.test_dataloader():
        for image, label, mask, index in zip(*(batch[k] for k in ("image", "label", "mask", "index")), strict=True):
            record = data.records("test")[index]
            pixels, *_ = data.datasets["test"].read(whole[record.path])
            assert torch.equal(image, torch.from_numpy(pixels))
            assert int(label) == record.label == int(mask.any())


@pytest.mark.parametrize("how", ["error", "skip"])
def test_mask_of_another_size_is_named(root, how):
    path = write_mask(root / "screw" / "ground_truth" / "hole" / "000_mask.png", size=24)
    data = module(root, on_bad_image=how)
    if how == "error":
        with pytest.raises(UserError, match=r"24x24.*32x32"):
            data.setup("test")
    else:
        data.setup("test")
        assert len(data.skipped()) == 1 and str(path) in data.skipped()[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("channels", 2), ("val_fraction", 0), ("val_fraction", 1.0), ("image_size", 0), ("resize", 27)),
        *(("batch_size", 0), ("eval_batch_size", -1), ("on_bad_image", "ignore")),
    ],
)
def test_settings_out_of_range_are_named(tmp_path, name, value):
    with pytest.raises(ValueError, match=rf"{name}\b.*{value}"):
        module(tmp_path, **{name: value})


def test_images_of_any_size_become_one(tmp_path):
    for i, size in enumerate((28, 40, 300)):
        write_image(tmp_path / "nut" / "train" / "good" / f"{i}.png", i, size, channels=1 if i else 3)
    data = loaded(tmp_path)
    assert data.datasets["train"].images.shape == (2, 3, 28, 28)
    assert os.listdir(tmp_path) == ["nut"]  # nothing is written beside the data


@pytest.mark.parametrize("cache_gb", [8.0, 0.0])
def test_a_centre_crop_of_images_and_masks(root, cache_gb):
    settings = dict(image_size=32), dict(resize=32)
    modules = [loaded(root, "test", cache_gb=cache_gb, **sizes) for sizes in settings]
    batches = [data.datasets["test"].__getitems__(range(18)) for data in modules]
    assert torch.equal(batches[0]["image"][..., 2:30, 2:30], batches[1]["image"])
    assert torch.equal(batches[0]["mask"][..., 2:30, 2:30], batches[1]["mask"]) and batches[1]["mask"].any()


@pytest.mark.parametrize("cache_gb", [8.0, 0.0])
def test_images_that_keep_their_shape_have_their_size_beside_them(tmp_path, cache_gb):
    root, size = fake_mvtec(tmp_path, ("nut",), size=(40, 80)), (28, 56)
    write_image(root / "nut" / "train" / "good" / "tall.png", 9, (80, 40))
    data = module(root, image_size=56, keep_shape=True, cache_gb=cache_gb, val_fraction=0.5)
    for split, stage in (("val", "fit"), ("test", "test")):
        data.setup(stage)
        for batch in getattr(data, f"{split}_dataloader")():
            assert batch["image"].shape[-2:] == batch["mask"].shape[-2:] == (56, 56)
            for image, mask, own, label in zip(*(batch[k] for k in ("image", "mask", "size", "label")), strict=True):
                (height, width), inside = own.tolist(), torch.zeros(56, 56, dtype=torch.bool)
                assert (height, width) in (size, size[::-1])
                inside[:height, :width] = True
                assert not image[:, ~inside].any() and image[:, :height, :width].float().std() > 20
                assert not (mask & ~inside).any() and mask.any() == bool(label)
    assert "size" not in loaded(root, "test", image_size=56).datasets["test"].__getitems__([0])
