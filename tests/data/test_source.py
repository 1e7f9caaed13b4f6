import numpy as np
import pytest
from makers import write_image, write_mask

from adlight.data.source import Sampling, Source, balance_labels, require_images, subsample
from adlight.types import Record, UserError


def test_mask_is_0_or_255_and_of_its_images_size(tmp_path):
    record = Record("image.png", "c", "hole", 1, str(write_mask(tmp_path / "m.png", 32)))
    mask = np.asarray(Source().read_mask(record, (32, 32)))
    assert mask.sum() == 64 * 255
    assert Source().read_mask(record._replace(mask=None), (32, 32)) is None
    with pytest.raises(UserError, match=r"m\.png is 32x32, its image image\.png is 16x32"):
        Source().read_mask(record, (16, 32))


RECORDS = [Record(f"{i}", "c", "good" if i % 5 == 0 else "bad", int(i % 5 > 0)) for i in range(100)]


@pytest.mark.parametrize("limit", [2, 10, 33, 99])
def test_subsample_keeps_order_and_shares_under_the_seed(limit):
    drawn = subsample(RECORDS, limit, 3)
    assert len(drawn) == limit
    assert drawn == [record for record in RECORDS if record in set(drawn)]
    assert drawn == subsample(RECORDS, limit, 3)
    assert abs(sum(record.label for record in drawn) - 0.8 * limit) <= 1
    assert {record.label for record in drawn} == {0, 1}


def test_subsample_depends_on_the_seed_and_a_large_limit_keeps_all():
    assert subsample(RECORDS, 10, 3) != subsample(RECORDS, 10, 4)
    assert subsample(RECORDS, 100, 3) == subsample(RECORDS, None, 3) == RECORDS
    assert [record.path for record in subsample(RECORDS, 5, 0)] == ["16", "20", "36", "82", "93"]  # for good


def test_balance_keeps_all_normals():
    kept = balance_labels(RECORDS, 0)
    assert [record.label for record in kept].count(0) == [record.label for record in kept].count(1) == 20
    assert kept != balance_labels(RECORDS, 1)


def test_sampling_limits_each_split():
    sampling = Sampling(train_limit=3, test_limit=10, balanced_test=True, seed=7)
    assert sampling.train(RECORDS) == subsample(RECORDS, 3, 7)
    assert sampling.test(RECORDS) == subsample(balance_labels(RECORDS, 7), 10, 7)
    assert all(part in sampling.describe() for part in ("at most 3 training", "10 mixed test", "seed 7"))
    assert Sampling().train(RECORDS) == Sampling().test(RECORDS) == RECORDS and not Sampling().describe()


@pytest.mark.parametrize("limit", [0, 1.5])
def test_limits_are_positive_integers(limit):
    with pytest.raises(ValueError, match=rf"test_limit(.|\n)*{limit}"):
        Sampling(train_limit=5, test_limit=limit)


def test_required_images(tmp_path):
    kept, left_out = write_image(tmp_path / "a.png"), write_image(tmp_path / "masks" / "b.png")
    assert require_images(tmp_path, "root") == [kept, left_out]
    assert require_images(tmp_path, "root", [tmp_path / "masks"]) == [kept]
    (tmp_path / "empty").mkdir()
    for folder, found in ((tmp_path / "nope", "a.png, empty, masks"), (tmp_path / "empty", "an empty folder")):
        with pytest.raises(UserError) as caught:
            require_images(folder, "normal_dir")
        assert all(part in str(caught.value) for part in ("normal_dir", str(folder), found))
