import numpy as np
import pytest
import torch
from makers import write_image
from PIL import Image

from adlight.data.frames import Frame, WholeFrame
from adlight.data.image_files import read_image, read_size
from adlight.data.images import prepare_image, to_channels, to_input_array, to_mask, to_pil
from adlight.types import UserError

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
    yield "rgb.tiff", Image.fromarray(RGB), RGB
    yield "rgb.bmp", Image.fromarray(RGB), RGB
    yield "upper.PNG", Image.fromarray(RGB), RGB


@pytest.mark.filterwarnings("ignore:'mode' parameter")
@pytest.mark.parametrize("name", [name for name, _, _ in images()])
def test_any_usual_image_becomes_three_channels_of_8_bits(tmp_path, name):
    image, expected = next((image, expected) for found, image, expected in images() if found == name)
    image.save(tmp_path / name)
    read = to_channels(read_image(tmp_path / name), 3)
    assert read.mode == "RGB"
    assert np.array_equal(np.asarray(read), expected)
    assert np.asarray(to_channels(read_image(tmp_path / name), 1)).shape == (16, 24)


def test_jpeg_is_read_nearly_as_written(tmp_path):
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 2, (64, 1))
    Image.fromarray(ramp).save(tmp_path / "ramp.jpg", quality=95)
    read = np.asarray(to_channels(read_image(tmp_path / "ramp.jpg"), 3)).astype(int)
    assert np.abs(read - ramp[..., None]).max() <= 4


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_without_a_known_range_are_refused(tmp_path, kind):
    Image.fromarray(GREY.astype(kind)).save(tmp_path / "f.tiff")
    for read in (read_size, lambda path: prepare_image(path, 3, Frame(8))):
        with pytest.raises(UserError, match=r"f\.tiff: .*no known range"):
            read(tmp_path / "f.tiff")
    with pytest.raises(UserError, match="no known range"):
        to_channels(Image.fromarray(GREY.astype(kind)), 3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
def test_truncated_or_foreign_file_is_named(tmp_path, suffix):
    path = write_image(tmp_path / f"x.{suffix}", size=64)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"x\.{suffix}"):
        read_image(path)
    path.write_text("<html>no image</html>")
    with pytest.raises(UserError, match=rf"x\.{suffix}"):
        read_image(path)


@pytest.mark.parametrize("channels", [1, 3])
def test_resized_has_channels_first(channels):
    array = to_input_array(Image.fromarray(RGB), channels, Frame(8))
    assert array.shape == (channels, 8, 8)
    assert array.dtype == np.uint8


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
@pytest.mark.parametrize("frame", [Frame((9, 11)), Frame(8), Frame(10, keep_shape=True), WholeFrame()])
def test_in_bands_an_image_is_the_same(mode, frame, in_bands):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (9, 11, 3), np.uint8))
    image = Image.fromarray(rng.integers(0, 2**16, (9, 11), np.uint16)) if mode == "I;16" else image.convert(mode)
    found = {}
    for channels in (1, 3):
        found[channels] = to_input_array(image, channels, frame)
        whole = np.asarray(to_channels(image, channels)).reshape(9, 11, channels).transpose(2, 0, 1)
        assert found[channels].shape[1:] != (9, 11) or np.array_equal(found[channels], whole)
    in_bands()
    for channels, wanted in found.items():
        assert np.array_equal(to_input_array(image, channels, frame), wanted)


def mask_of(tmp_path, name, array):
    Image.fromarray(array).save(tmp_path / name)
    return to_mask(read_image(tmp_path / name))


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


@pytest.mark.parametrize(("side", "size"), [(32, 30), (32, 29), (8, 8)])
def test_a_centre_crop_and_back(side, size):
    image = np.random.default_rng(0).integers(1, 256, (side, side, 3), dtype=np.uint8)
    before = (side - size) // 2
    wanted = image[before : before + size, before : before + size]
    assert np.array_equal(to_input_array(Image.fromarray(image), 3, Frame(size, side)), wanted.transpose(2, 0, 1))
    back = Frame(size, side).restore(wanted.transpose(2, 0, 1), 99, 99)
    assert back.shape == (3, side, side) and np.count_nonzero(back) == 3 * size**2
    assert np.array_equal(Frame(size, side).cut(back.transpose(1, 2, 0)), wanted)


def test_a_crop_is_cut_after_resizing():
    image = Image.fromarray(RGB)
    assert np.array_equal(to_input_array(image, 3, Frame(8, 12)), to_input_array(image, 3, Frame(12))[:, 2:10, 2:10])


TENSOR = torch.from_numpy(RGB.copy())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (Image.fromarray(RGB), RGB),
        (RGB, RGB),
        (GREY, GREY),
        (GREY[..., None], GREY),
        (DEEP, GREY),
        (np.dstack([RGB, GREY]), np.dstack([RGB, GREY])),
        (TENSOR.permute(2, 0, 1), RGB),
        (TENSOR[..., 0], GREY),
    ],
)
def test_whatever_holds_an_image_becomes_one(given, expected):
    assert np.array_equal(np.asarray(to_pil(given)), expected)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (np.zeros((8, 8)), "float64"),
        (torch.zeros(3, 8, 8, dtype=torch.bfloat16), "bfloat16"),
        (np.zeros((8, 8, 2), np.uint8), r"\(8, 8, 2\)"),
        (np.zeros((0, 8), np.uint8), r"\(0, 8\)"),
        (torch.zeros(8, dtype=torch.uint8), r"\(8,\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"\(2, 3, 8, 8\)"),
    ],
)
def test_what_holds_no_image_is_described(given, named):
    with pytest.raises(UserError, match=named):
        to_pil(given)
