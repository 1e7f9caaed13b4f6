import numpy as np
import pytest
from makers import write_image, write_mask
from PIL import Image

from adlight.data.images import center_crop, list_images, pad_center, read_image, to_channels, to_input_array
from adlight.data.source import Source, balanced, check_limits, count_unmasked, subsample
from adlight.types import Record, UserError

RGB = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
GREY = RGB[..., 0]
DEEP = GREY.astype(np.uint16) * 256 + 77  # 16 bits; its high byte is GREY


def images():
    """Name, image to save and the RGB that must be read from it."""
    alpha = np.dstack([RGB, np.full_like(GREY, 9)])
    three = np.dstack([GREY] * 3)
    palette = Image.fromarray(GREY).convert("P")
    yield "grey.png", Image.fromarray(GREY), three
    yield "rgb.png", Image.fromarray(RGB), RGB
    yield "rgba.png", Image.fromarray(alpha), RGB
    yield "grey_alpha.png", Image.fromarray(np.dstack([GREY, GREY]), "LA"), three
    yield "palette.png", palette, np.asarray(palette.convert("RGB"))
    yield "bits.png", Image.fromarray(GREY > 99), np.dstack([(GREY > 99) * np.uint8(255)] * 3)
    yield "deep.png", Image.fromarray(DEEP), three
    yield "deep.tif", Image.fromarray(DEEP), three
    yield "deep32.tif", Image.fromarray(DEEP.astype(np.int32)), three
    yield "rgb.tiff", Image.fromarray(RGB), RGB
    yield "rgb.bmp", Image.fromarray(RGB), RGB
    yield "upper.PNG", Image.fromarray(RGB), RGB


@pytest.mark.filterwarnings("ignore:'mode' parameter")
@pytest.mark.parametrize("name", [name for name, _, _ in images()])
def test_any_usual_image_becomes_three_channels_of_8_bits(tmp_path, name):
    image, expected = next((image, expected) for found, image, expected in images() if found == name)
    image.save(tmp_path / name)
    read = to_channels(read_image(str(tmp_path / name)), 3)
    assert read.mode == "RGB"
    assert np.array_equal(np.asarray(read), expected)
    assert np.asarray(to_channels(read_image(str(tmp_path / name)), 1)).shape == (16, 24)


def test_jpeg_is_read_nearly_as_written(tmp_path):
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 2, (64, 1))
    Image.fromarray(ramp).save(tmp_path / "ramp.jpg", quality=95)
    read = np.asarray(to_channels(read_image(str(tmp_path / "ramp.jpg")), 3)).astype(int)
    assert np.abs(read - ramp[..., None]).max() <= 4


def test_float_pixels_are_refused(tmp_path):
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(UserError, match="no known range"):
        to_channels(read_image(str(tmp_path / "f.tiff")), 3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
def test_truncated_or_foreign_file_is_named(tmp_path, suffix):
    path = write_image(tmp_path / f"x.{suffix}", size=64)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"x\.{suffix}"):
        read_image(str(path))
    path.write_text("<html>no image</html>")
    with pytest.raises(UserError, match=rf"x\.{suffix}"):
        read_image(str(path))


@pytest.mark.parametrize("channels", [1, 3])
def test_resized_has_channels_first(channels):
    array = to_input_array(Image.fromarray(RGB), channels, 8)
    assert array.shape == (channels, 8, 8)
    assert array.dtype == np.uint8


def test_mask_is_0_or_255_and_of_its_images_size(tmp_path):
    record = Record("image.png", "c", "hole", 1, str(write_mask(tmp_path / "m.png", 32)))
    mask = np.asarray(Source().read_mask(record, (32, 32)))
    assert mask.sum() == 64 * 255
    assert Source().read_mask(record._replace(mask=None), (32, 32)) is None
    with pytest.raises(UserError, match=r"m\.png is 32x32, its image image\.png is 16x32"):
        Source().read_mask(record, (16, 32))


def mask_of(tmp_path, name, array):
    Image.fromarray(array).save(tmp_path / name)
    record = Record("image", "c", "hole", 1, str(tmp_path / name))
    return np.asarray(Source().read_mask(record, array.shape[1::-1])) > 0


@pytest.mark.parametrize("value", [1, 255, 65535])
def test_mask_of_16_bits_keeps_small_values(tmp_path, value):
    wanted = np.zeros((8, 8), bool)
    wanted[2:4] = True
    assert np.array_equal(mask_of(tmp_path, "m.png", (wanted * value).astype(np.uint16)), wanted)


@pytest.mark.parametrize("name", ["m.png", "m.jpg", "m.bmp"])
def test_mask_survives_colour_and_jpeg(tmp_path, name):
    wanted = np.zeros((32, 32), bool)
    wanted[5:20, 7:12] = True
    colour = np.dstack([wanted * np.uint8(255)] * 3)
    assert np.array_equal(mask_of(tmp_path, name, colour), wanted)


def test_listing_is_sorted_and_passes_over_other_files(tmp_path):
    for name in ("b.png", "a.jpg", "sub/c.bmp", ".hidden.png"):
        write_image(tmp_path / name)
    (tmp_path / "license.txt").write_text("x")
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.png", "c.bmp"]


RECORDS = [Record(f"{i}", "c", "good" if i % 5 == 0 else "bad", int(i % 5 > 0)) for i in range(100)]


@pytest.mark.parametrize("limit", [2, 10, 33, 99])
def test_limited_keeps_order_and_shares_under_the_seed(limit):
    drawn = subsample(RECORDS, limit, 3)
    assert len(drawn) == limit
    assert drawn == [record for record in RECORDS if record in set(drawn)]
    assert drawn == subsample(RECORDS, limit, 3)
    assert abs(sum(record.label for record in drawn) - 0.8 * limit) <= 1
    assert {record.label for record in drawn} == {0, 1}


def test_limited_depends_on_the_seed_and_a_large_limit_keeps_all():
    assert subsample(RECORDS, 10, 3) != subsample(RECORDS, 10, 4)
    assert subsample(RECORDS, 100, 3) == subsample(RECORDS, None, 3) == RECORDS
    assert [record.path for record in subsample(RECORDS, 5, 0)] == ["16", "20", "36", "82", "93"]  # for good


def test_balanced_keeps_all_normals():
    kept = balanced(RECORDS, 0)
    assert [record.label for record in kept].count(0) == [record.label for record in kept].count(1) == 20
    assert kept != balanced(RECORDS, 1)


def test_limit_below_one_is_refused():
    check_limits(train_limit=None, test_limit=1)
    with pytest.raises(UserError, match="test_limit=0"):
        check_limits(train_limit=5, test_limit=0)


def test_unmasked_counts_anomalies_only():
    masked = RECORDS[1]._replace(mask="m.png")
    assert count_unmasked([RECORDS[0], RECORDS[1], masked]) == 1


@pytest.mark.parametrize(("side", "size"), [(32, 30), (32, 29), (8, 8)])
def test_a_centre_crop_and_back(side, size):
    image = np.random.default_rng(0).integers(1, 256, (side, side, 3), dtype=np.uint8)
    before = (side - size) // 2
    wanted = image[before : before + size, before : before + size]
    assert np.array_equal(to_input_array(Image.fromarray(image), 3, size, side), wanted.transpose(2, 0, 1))
    back = pad_center(wanted.transpose(2, 0, 1), side)
    assert back.shape == (3, side, side) and np.count_nonzero(back) == 3 * size**2
    assert np.array_equal(center_crop(back.transpose(1, 2, 0), size), wanted)


def test_a_crop_is_cut_after_resizing():
    image = Image.fromarray(RGB)
    assert np.array_equal(to_input_array(image, 3, 8, 12), to_input_array(image, 3, 12)[:, 2:10, 2:10])
