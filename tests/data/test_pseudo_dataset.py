"""Pseudo-anomalies that are whole images."""

import pytest
import torch
from torch import Generator

from adlight.data import pseudo_dataset
from adlight.data.pseudo_dataset import KINDS, PseudoAnomalyDataset, change_class, remove, shuffle, splice


def generator(seed=0):
    return Generator().manual_seed(seed)


def picture(channels=3, height=32, width=32, seed=0):
    smooth = torch.rand(1, channels, 6, 6, generator=generator(seed)) * 255
    return torch.nn.functional.interpolate(smooth, (height, width), mode="bicubic")[0].clamp(0, 255)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 48), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_makes_another_image_of_the_same_shape(kind, shape):
    image, other = picture(*shape), picture(*shape, seed=1)
    kept, draws = image.clone(), generator()
    drawn = [kind(image, other, draws) for _ in range(20)]
    assert all(one.shape == shape and torch.isfinite(one).all() for one in drawn) and torch.equal(image, kept)
    assert sum(float((one - image).abs().mean()) > 3 for one in drawn) > 5


def test_every_anomaly_is_visible_and_none_is_another_normal_image():
    image, other = picture().byte(), picture(height=20, width=44, seed=1).byte()
    draws = generator()
    for _ in range(50):
        made = change_class(image, other, draws)
        assert made.dtype == torch.uint8 and made.shape == image.shape
        assert (made.float() - image.float()).abs().mean() >= pseudo_dataset.MIN_CHANGE - 0.5


@pytest.mark.parametrize("value", [0, 255])
def test_images_that_no_kind_changes_are_inverted(value):
    image = torch.full((1, 28, 28), value, dtype=torch.uint8)
    assert torch.equal(change_class(image, image, generator()), 255 - image)


def test_parts_are_put_into_another_order():
    image = torch.arange(24 * 24, dtype=torch.float32).view(1, 24, 24)
    drawn = [shuffle(image, image, generator(seed)) for seed in range(20)]
    assert all(torch.equal(one.flatten().sort().values, image.flatten()) for one in drawn)
    assert sum(torch.equal(one, image) for one in drawn) < 5


def test_halves_of_two_images():
    image, other = torch.zeros(1, 8, 8), torch.arange(64.0).view(1, 8, 8) + 1
    other_half = {
        tuple(half.flatten().tolist()) for half in (other[:, :4], other[:, 4:], other[..., :4], other[..., 4:])
    }
    found = {tuple(one[one > 0].tolist()) for one in (splice(image, other, generator(seed)) for seed in range(30))}
    assert found == other_half


def test_a_removed_part_has_its_surroundings_values():
    image = torch.full((1, 28, 28), 10.0)
    image[:, 12:16, 12:16] = 200
    assert any(remove(image, image, generator(seed)).amax() < 20 for seed in range(20))


class Normals:
    """Three images in a frame that the last one does not fill, of which the left part counts."""

    cache = True

    def __init__(self, **keys):
        self.images, self.keys = torch.stack([picture(seed=seed).byte() for seed in range(3)]), keys

    def __len__(self):
        return len(self.images)

    def __getitems__(self, indices):
        found = {key: value[list(indices)].clone() for key, value in self.keys.items()}
        return {"image": self.images[list(indices)].clone(), "mask": torch.zeros(len(indices), 32, 32).bool(), **found}


def test_copies_are_changed_as_a_whole_and_masks_say_where():
    size, content = torch.tensor([[32, 32], [32, 32], [24, 30]]), torch.zeros(3, 32, 32, dtype=torch.bool)
    content[..., :20] = True
    for keys in ({}, {"size": size}, {"content": content}):
        made = [PseudoAnomalyDataset(Normals(**keys), 0, 2, "classes").__getitems__(range(9)) for _ in range(2)]
        batch = made[0]
        assert torch.equal(batch["image"], made[1]["image"]) and batch["label"].tolist() == [0, 1, 1] * 3
        images = batch["image"].unflatten(0, (3, 3))
        changed = (images != images[:, :1]).any(2)
        assert torch.equal(changed, batch["mask"].unflatten(0, (3, 3))) and not changed[:, 0].any()
        assert (changed[:, 1:].flatten(2).sum(2) > 30).all() and not torch.equal(images[:, 1], images[:, 2])
        if "content" in keys:
            assert not changed[..., 20:].any()
        if "size" in keys:
            assert not changed[2, :, 24:].any() and not changed[2, :, :, 30:].any()


def test_rotated_copies():
    data = Normals(size=torch.tensor([[32, 32], [32, 32], [24, 30]]))
    images = PseudoAnomalyDataset(data, 0, 12, "rotations").__getitems__(range(39))["image"].unflatten(0, (3, 13))
    for image, *copies in images[:2]:
        turns = [torch.rot90(image, k, (1, 2)) for k in range(4)]
        found = [[torch.equal(copy, turn) for turn in turns].index(True) for copy in copies]
        assert set(found) == {1, 2, 3}
    assert torch.equal(images[2, 1, :, :24, :30], images[2, 0, :, :24, :30].flip(1, 2))  # not square


def test_one_image_alone_and_content_without_a_change():
    data = Normals()
    data.images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    data.keys = {"content": torch.zeros(1, 32, 32, dtype=torch.bool)}
    data.keys["content"][:, 3, 4] = True
    for kind in ("classes", "rotations"):
        batch = PseudoAnomalyDataset(data, 0, 1, kind).__getitems__([0, 1])
        assert batch["mask"][1].sum() == 1 and (batch["image"][1, :, 3, 4] > 0).any()
