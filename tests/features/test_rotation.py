"""Rotated copies of training images."""

import pytest
import torch

from adlight.features.cache import FeatureCache
from adlight.features.cells import Copies, TrainingCells
from adlight.features.rotation import MAX_BYTES, RotatedImages, choose_angles, make_copies, rotate
from adlight.memory.retrieval import Retrieval

CPU, SIDE = torch.device("cpu"), 6


class Pixels:
    """Stands in for a backbone: every cell is a pixel."""

    fingerprint = "pixels"

    def __call__(self, image, size=None):
        return image.permute(0, 2, 3, 1)


class Images:
    def __init__(self, image, **more):
        self.batch = {"image": image, **more}

    def __len__(self):
        return len(self.batch["image"])

    def __getitems__(self, indices):
        return {name: value[list(indices)] for name, value in self.batch.items()}


def parts(turns, height=SIDE, width=SIDE, seed=0):
    """Return photographs (N, 3, H, W) of one part, rotated by quarter turns (N,), with a little noise."""
    rng = torch.Generator().manual_seed(seed)
    part = torch.randint(0, 200, (3, height, width), generator=rng)
    noise = torch.randint(0, 50, (len(turns), 3, height, width), generator=rng)
    return (torch.stack([part.rot90(turn, (1, 2)) for turn in turns]) + noise).to(torch.uint8)


def copies_of(image, **more):
    images, cache = Images(image, **more), FeatureCache(Pixels())
    cells = TrainingCells(cache(images, CPU), torch.zeros(3), torch.ones(3))
    return make_copies(cells, torch.zeros(1, 3), images, cache)


@pytest.mark.parametrize(
    ("turns", "height", "found"),
    [
        ([0, 1, 2, 3] * 12, SIDE, [90, 180, 270]),  # a square part, which no other angle leaves as it is
        ([0, 2] * 24, SIDE, [180]),
        ([0, 2] * 24, SIDE + 2, [180]),  # quarter turns do not fit into the frame
        ([0] * 48, SIDE, []),
    ],
)
def test_images_are_rotated_as_they_lie(turns, height, found):
    image = parts(turns, height)
    copies = copies_of(image)
    if not found:
        assert copies is None
        return
    assert torch.equal(copies.source, torch.arange(len(image)).repeat(len(found)))
    turned = torch.cat([rotate(image, degrees) for degrees in found])
    assert copies.features.float() * 255 == pytest.approx(turned.permute(0, 2, 3, 1), abs=0.2)


def test_parts_that_lie_at_any_angle():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
    part = torch.sigmoid(9 * (0.8 - (x - 0.1).hypot(3 * y))).expand(1, 3, 16, 16)  # an ellipse beside the center
    image = (200 * torch.cat([rotate(part, 9.0 * i) for i in range(40)])).byte()
    image += torch.randint(0, 50, image.shape, generator=torch.Generator().manual_seed(0)).byte()
    copies = copies_of(image)
    assert torch.equal(copies.source, torch.arange(40).repeat(31))


@pytest.mark.parametrize(("count", "number"), [(1, 32), (64, 32), (65, 16), (133, 16), (134, 8), (286, 4), (10_000, 4)])
def test_few_images_are_rotated_by_more_angles(count, number):
    size = count * 20 * 20 * 232 * 2
    angles = choose_angles(size)
    assert angles == pytest.approx([360 / number * i for i in range(1, number)])
    assert {90, 180, 270} <= set(angles)
    assert number == 4 or len(angles) * size <= MAX_BYTES
    assert len(choose_angles(size, 8)) == min(number, 8) - 1  # as a detector of 8 angles has them


@pytest.mark.parametrize("as_bytes", [False, True])
def test_rotations_between_quarter_turns(as_bytes):
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    image = (0.5 + 0.4 * torch.sin(2 * x + y) * torch.cos(y)).expand(2, 3, 64, 64)
    image = (255 * image).round().byte() if as_bytes else image
    thrice = rotate(rotate(rotate(image, 30.0), 30.0), 30.0)
    assert thrice.dtype == image.dtype
    inner = (..., slice(16, 48), slice(16, 48))  # the corners are mirror images
    turned = rotate(image, 90)
    assert torch.equal(turned, image.rot90(1, (2, 3)))
    assert thrice[inner].double() == pytest.approx(turned[inner].double(), abs=4 if as_bytes else 0.01)


def test_each_cluster_decides_for_itself():
    lying, turned = parts([0] * 20), 255 - parts([0, 1, 2, 3] * 5, seed=1)
    images, cache = Images(torch.cat([lying, turned])), FeatureCache(Pixels())
    cells = TrainingCells(cache(images, CPU), torch.zeros(3), torch.ones(3))
    centers = torch.stack([cells[:20].mean((0, 1, 2)), cells[20:].mean((0, 1, 2))])
    copies = make_copies(cells, centers, images, cache)
    assert set(copies.source.tolist()) == set(range(20, 40))


def test_a_region_of_interest_fixes_how_images_lie():
    image = parts([0, 1, 2, 3] * 5)
    assert copies_of(image, content=torch.ones(20, SIDE, SIDE, dtype=torch.bool)) is None


def test_only_the_content_of_padded_images_is_rotated():
    image, size = parts([0, 0]), torch.tensor([[4, 6], [3, 2]])
    image[0, :, 4:], image[1, :, 3:], image[1, :, :, 2:] = 0, 0, 0
    batch = RotatedImages(Images(image, size=size), torch.tensor([1, 0]), 180).__getitems__([0, 1])
    assert batch["size"].tolist() == [[3, 2], [4, 6]]
    assert torch.equal(batch["image"][0, :, :3, :2], image[1, :, :3, :2].rot90(2, (1, 2)))
    assert batch["image"][0, :, 3:].sum() == 0 and batch["image"][0, :, :, 2:].sum() == 0
    assert torch.equal(rotate(batch["image"], 180, batch["size"]), image.flip(0))


def copied(count=9):
    known = torch.randn(count, 4, 4, 5, generator=torch.manual_seed(0)).half()
    index = torch.arange(count).repeat(3)
    turned = torch.cat([known.rot90(turn, (1, 2)) for turn in (1, 2, 3)])
    return TrainingCells(known, torch.zeros(5), torch.ones(5), Copies(turned, index))


def test_retrieval_finds_copies_but_not_the_image_s_own():
    cells, made = copied(), Retrieval(5, neighbours=1)
    made.fit(cells)
    assert made.count_angles() == 4
    query = cells[:].rot90(1, (1, 2))
    assert torch.equal(made(query), query)
    assert (made.residual(query, torch.arange(9)).flatten(1).norm(dim=1) > 1).all()


def test_copies_of_some_images():
    some = copied().copies.of_images(torch.tensor([2, 5]))
    assert some.source.tolist() == [0, 1] * 3
