import pytest
import torch

from adlight.data.augmentation import Augmentation
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
        assert found.min() >= 0 and found.max() <= 1 and not torch.equal(found, image)


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
    torch.testing.assert_close(found, image.flip(axis), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("settings", "axes"), [((0.5, 0.0), {(), (3,)}), ((0.5, 0.5), {(), (2,), (3,), (2, 3)})])
def test_flips_only_when_asked_for(settings, axes):
    image, seen = images(1).expand(60, -1, -1, -1).contiguous(), []
    for found in Augmentation(1, 0, *settings)(image, 5):
        same = [way for way in ((), (2,), (3,), (2, 3)) if torch.allclose(found, image[:1].flip(way)[0], atol=1e-6)]
        assert len(same) == 1
        seen += same
    assert set(seen) == axes and min(seen.count(way) for way in axes) > 5


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


def test_padding_stays_where_it_is():
    image, size = images(4, size=32) * 0.5 + 0.5, torch.tensor([[32, 16], [16, 32], [32, 32], [32, 16]])
    content = is_content(size, image[:, 0])[:, None]
    image = image * content
    found = Augmentation(vertical_flip=0.5)(image, 3, size)
    assert found.shape == image.shape and torch.equal(found, found * content)
    assert found[content.expand_as(found)].min() > 0.45  # nothing of the padding rotates in
    assert not torch.equal(found[0], image[0]) and torch.equal(found, Augmentation(vertical_flip=0.5)(image, 3, size))
