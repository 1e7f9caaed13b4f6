import numpy as np
import pytest
from makers import write_image
from PIL import ExifTags, Image

from adlight.data.frames import Frame
from adlight.data.image_files import read_image, read_size, seems_truncated
from adlight.data.images import prepare_image, to_channels, to_mask
from adlight.types import UserError

TALL = np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8)  # upright
UNDONE = {
    1: np.array,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    6: np.rot90,
    8: lambda a: np.rot90(a, 3),
}


def save_turned(path, orientation):
    """Save the image as a camera does that was held otherwise: EXIF says how it is to be turned back."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.ascontiguousarray(UNDONE[orientation](TALL))).save(path, exif=exif)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
@pytest.mark.parametrize("orientation", UNDONE)
def test_images_are_turned_upright(tmp_path, suffix, orientation):
    path = save_turned(tmp_path / f"x.{suffix}", orientation)
    read = read_image(path)
    assert read.size == read_size(path) == (16, 24)
    if suffix == "jpg":
        plain = save_turned(tmp_path / "plain.jpg", 1)
        assert np.abs(np.asarray(read).astype(int) - np.asarray(read_image(plain))).mean() < 40  # noise in a JPEG
    else:
        assert np.array_equal(np.asarray(read), TALL)
    with Image.open(path) as opened:  # a path and a picture give the same
        pixels = [prepare_image(one, 3, Frame([24, 16])).pixels for one in (path, opened)]
    assert np.array_equal(*pixels)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_are_ignored(tmp_path):
    Image.fromarray(TALL).save(tmp_path / "x.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert read_image(tmp_path / "x.jpg").size == (16, 24)


@pytest.mark.parametrize("name", ["x.tiff", "animated.png", "a_gif.png"])
def test_several_pictures_in_a_file_are_refused(tmp_path, name):
    more = {"save_all": True, "append_images": [Image.fromarray(255 - TALL)]}
    Image.fromarray(TALL).save(tmp_path / name, format="GIF" if "gif" in name else None, **more)
    for read in (read_image, read_size):
        with pytest.raises(UserError, match=rf"{name}: .*several pictures"):
            read(tmp_path / name)


def test_a_photo_with_a_preview_is_one_picture(tmp_path):
    preview = Image.fromarray(TALL[::2, ::2].copy())
    Image.fromarray(TALL).save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[preview])
    assert read_image(tmp_path / "x.jpg").size == read_size(tmp_path / "x.jpg") == (16, 24)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_cut_file_is_suspected_without_decoding(tmp_path, suffix):
    path = write_image(tmp_path / f"x.{suffix}", size=64)
    assert not seems_truncated(path)
    path.write_bytes(path.read_bytes()[:-20])
    assert seems_truncated(path) and seems_truncated(tmp_path / "nothing.png")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", ["CMYK", "LAB", "YCbCr"])
def test_other_colour_spaces_are_converted(tmp_path, mode):
    flat = Image.new("RGB", (16, 16), (200, 100, 50))
    (flat if mode == "LAB" else flat.convert(mode)).save(tmp_path / "x.tiff")
    assert np.abs(np.asarray(to_channels(read_image(tmp_path / "x.tiff"), 3)).astype(int) - (200, 100, 50)).max() <= 3


@pytest.mark.filterwarnings("error")
def test_transparent_palettes_are_read_without_their_transparency(tmp_path):
    palette = Image.fromarray(TALL).convert("P")
    palette.save(tmp_path / "p.png", transparency=bytes(range(256)))
    assert np.array_equal(
        np.asarray(to_channels(read_image(tmp_path / "p.png"), 3)), np.asarray(palette.convert("RGB"))
    )


def drawn(alpha, level=255):
    mask = np.zeros((16, 16, 4), np.uint8)
    mask[:4, :4, :3], mask[..., 3] = level, 255
    mask[4:, 4:, 3] = alpha
    return Image.fromarray(mask)


def test_the_mask_of_an_even_alpha_channel_is_its_colour():
    assert to_mask(drawn(255)).sum() == 16


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (drawn(0), "alpha"),
        (drawn(0, level=0), "alpha"),
        (Image.new("L", (16, 16)), "marks nothing"),
        (Image.new("L", (16, 16), 255), "every pixel"),
        (Image.fromarray(np.eye(16, dtype=np.float32)), "floating-point"),
    ],
)
def test_masks_that_cannot_be_meant_are_refused(mask, said):
    with pytest.raises(UserError, match=said):
        to_mask(mask)
