import math

import pytest
import torch
from torch.nn.functional import grid_sample
from torchvision.transforms import RandomResizedCrop

from adlight.data.augmentation import Augmentation, draw_crops, make_grid
from adlight.data.frames import is_content


def images(count=4, channels=3, size=24):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def test_same_seed_same_result():
    augmentation, image = Augmentation(), images()
    first = augmentation(image, 5)
    torch.manual_seed(1)
    assert torch.equal(augmentation(image, 5), first)
    assert torch.equal(Augmentation()(image, 5), first)
    assert not torch.equal(augmentation(image, 6), first)


def test_torchs_own_generators_are_left_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPU's generators are seeded"))
    torch.random.default_generator.manual_seed(7)
    before = torch.get_rng_state()
    Augmentation()(images(), 5)
    assert torch.equal(before, torch.get_rng_state())


def test_images_are_not_changed_in_place():
    image = images()
    kept = image.clone()
    Augmentation(vertical_flip=0.5)(image, 5)
    assert torch.equal(image, kept)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [24, 33])
def test_values_stay_between_0_and_1(channels, size):
    image = torch.cat([images(channels=channels, size=size), images(channels=channels, size=size).round()])
    augmentation = Augmentation(crop=0.5, rotation=45, vertical_flip=0.5)
    for seed in range(10):
        found = augmentation(image, seed)
        assert found.shape == image.shape and found.dtype == torch.float32
        assert found.min() >= -1e-6 and found.max() <= 1 + 1e-6 and not torch.equal(found, image)


def test_each_image_has_its_own_change():
    one = images(1).expand(6, -1, -1, -1).contiguous()
    found = Augmentation()(one, 5)
    assert all(not torch.equal(found[0], found[i]) for i in range(1, 6))


def test_what_rotates_in_comes_from_the_border():
    white = torch.ones(8, 3, 32, 32)
    torch.testing.assert_close(Augmentation(crop=1, rotation=30, horizontal_flip=0)(white, 0), white)


def test_nothing_asked_for_is_nothing_done():
    image = images()
    assert torch.equal(Augmentation(crop=1, rotation=0, horizontal_flip=0)(image, 5), image)


@pytest.mark.parametrize(("settings", "axis"), [((1.0, 0.0), 3), ((0.0, 1.0), 2)])
def test_certain_flips_mirror_the_right_axis(settings, axis):
    image = images()
    found = Augmentation(1, 0, *settings)(image, 5)
    assert torch.equal(found, image.flip(axis))  # pixels move and are not interpolated


@pytest.mark.parametrize(("settings", "axes"), [((0.5, 0.0), {(), (3,)}), ((0.5, 0.5), {(), (2,), (3,), (2, 3)})])
def test_flips_only_when_asked_for(settings, axes):
    image, seen = images(1).expand(60, -1, -1, -1).contiguous(), []
    for found in Augmentation(1, 0, *settings)(image, 5):
        same = [way for way in ((), (2,), (3,), (2, 3)) if torch.equal(found, image[:1].flip(way)[0])]
        assert len(same) == 1
        seen += same
    assert set(seen) == axes and min(seen.count(way) for way in axes) > 5


def coordinates(count, height, width):
    """Images whose two channels are a pixel's own x and y, from the centre, in pixels."""
    x, y = (torch.arange(side) - (side - 1) / 2 for side in (width, height))
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)]).expand(count, 2, height, width)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 96)])
def test_rotations_are_about_the_centre_and_up_to_the_angle(height, width):
    """Bilinear interpolation is exact for coordinates: away from the border the result tells where it comes from."""
    image = coordinates(200, height, width).contiguous()
    found = Augmentation(crop=1, rotation=10, horizontal_flip=0)(image, 3)
    across = (
        found[:, :, height // 2, width // 2 + 8] - found[:, :, height // 2, width // 2 - 8]
    )  # (200, 2) of 16 pixels
    down = found[:, :, height // 2 + 4, width // 2] - found[:, :, height // 2 - 4, width // 2]
    angle = torch.atan2(across[:, 1], across[:, 0])
    torch.testing.assert_close(across.norm(dim=1), torch.full((200,), 16.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(down, torch.stack([-angle.sin(), angle.cos()], 1) * 8, rtol=0, atol=1e-3)
    middle = found[:, :, height // 2 - 1 : height // 2 + 1, width // 2 - 1 : width // 2 + 1].mean((2, 3))
    torch.testing.assert_close(middle, torch.zeros(200, 2), rtol=0, atol=1e-4)
    largest = math.radians(10)
    assert -largest <= angle.min() < -0.9 * largest and 0.9 * largest < angle.max() <= largest


@pytest.mark.parametrize("smallest", [0.3, 0.8])
def test_crops_are_distributed_as_torchvisions(smallest):
    image = torch.zeros(1, 1000, 1000)
    torch.manual_seed(0)
    drawn = [RandomResizedCrop.get_params(image, [smallest, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    reference = torch.tensor([(width, height) for _, _, height, width in drawn]) / 1000
    found = draw_crops(4000, smallest, torch.Generator().manual_seed(0))
    shares = torch.linspace(0.02, 0.98, 25)
    for of in (lambda extent: extent[:, 0], lambda extent: extent[:, 1], lambda extent: extent.prod(1)):
        torch.testing.assert_close(of(found).quantile(shares), of(reference).quantile(shares), rtol=0, atol=0.02)


def test_a_crop_lies_anywhere_in_the_image_and_never_beyond():
    image = coordinates(300, 64, 64).contiguous()
    found = Augmentation(crop=0.5, rotation=0, horizontal_flip=0)(image, 0)
    assert found.min() >= -31.5 and found.max() <= 31.5
    for channel, near, far in (
        (0, found[:, 0, 32, 0], found[:, 0, 32, -1]),
        (1, found[:, 1, 0, 32], found[:, 1, -1, 32]),
    ):
        free, place = 63 - (far - near), near + 31.5
        share = (place / free)[free > 6]
        assert share.min() < 0.1 and share.max() > 0.9 and 0.4 < share.mean() < 0.6, channel


def test_crops_keep_the_share_asked_for():
    ramp = torch.linspace(0, 1, 64).expand(100, 1, 64, 64).contiguous()
    found = Augmentation(crop=0.6, rotation=0, horizontal_flip=0)(ramp, 0)
    width = (found[:, 0, 32, -1] - found[:, 0, 32, 0]) * 63 / 64  # share of the width that a crop keeps
    assert 0.4 < width.min() < 0.8 and width.max() < 1.0 + 1e-5


def test_crops_of_rectangles_have_their_shape():
    """Content of a crop is stretched by at most 4 / 3, as in squares."""
    down, right = torch.linspace(0, 1, 32)[:, None].expand(32, 96), torch.linspace(0, 1, 96).expand(32, 96)
    image = torch.stack([down, right]).expand(200, 2, 32, 96).contiguous()
    found = Augmentation(crop=0.5, rotation=0, horizontal_flip=0)(image, 0)
    assert found.shape == image.shape
    height, width = found[:, 0, -1, 48] - found[:, 0, 0, 48], found[:, 1, 16, -1] - found[:, 1, 16, 0]
    stretch = width / height
    assert 0.7 < stretch.min() < 0.85 and 1.2 < stretch.max() < 1.43


def test_bytes_and_floats_give_what_one_grid_sample_of_the_batch_gives():
    image = torch.randint(256, (5, 3, 24, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    augmentation, floats = Augmentation(vertical_flip=0.5), image.float() / 255
    found = augmentation(image, 3)
    grid = make_grid(augmentation._draw(5, torch.Generator().manual_seed(3)), 24, 40)
    wanted = grid_sample(floats, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert torch.equal(found, augmentation(floats, 3)) and image.dtype == torch.uint8


def test_padding_stays_where_it_is():
    image, size = images(4, size=32) * 0.5 + 0.5, torch.tensor([[32, 16], [16, 32], [32, 32], [32, 16]])
    content = is_content(size, image[:, 0])[:, None]
    image = image * content
    found = Augmentation(vertical_flip=0.5)(image, 3, size)
    assert found.shape == image.shape and torch.equal(found, found * content)
    assert found[content.expand_as(found)].min() > 0.45  # nothing of the padding rotates in
    assert not torch.equal(found[0], image[0]) and torch.equal(found, Augmentation(vertical_flip=0.5)(image, 3, size))


def test_brightness_and_contrast_change_an_image_as_a_whole():
    image = 0.4 + 0.2 * images(count=64)
    lit = Augmentation(crop=1, rotation=0, horizontal_flip=0, brightness=0.1)(image, 3)
    shift = lit - image
    torch.testing.assert_close(shift, shift[:, :1, :1, :1].expand_as(shift), rtol=0, atol=1e-6)
    assert -0.1 <= shift.min() < -0.08 and 0.08 < shift.max() <= 0.1
    grey = images(count=64, channels=1) / 2 + 0.25
    spread = Augmentation(crop=1, rotation=0, horizontal_flip=0, contrast=0.5)(grey, 3).flatten(1)
    torch.testing.assert_close(spread.mean(1), grey.flatten(1).mean(1))
    ratio = spread.std(1) / grey.flatten(1).std(1)
    assert 0.5 <= ratio.min() < 0.6 and 1.4 < ratio.max() <= 1.5
