"""The image distortion model against a reference written cell by cell."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from adlight.baselines import distortion
from adlight.baselines.distortion import ImageDistortionModel
from adlight.types import UserError

SIZE = 12


def noise(count, seed=0, channels=1, size=SIZE):
    return torch.randint(0, 256, (count, channels, size, size), generator=torch.manual_seed(seed), dtype=torch.uint8)


def fitted(images, size=SIZE, **settings):
    made = ImageDistortionModel(size, images.shape[1], **settings)
    made.fit(images)
    return made


def edges_by_hand(image):
    """Edges of 1 x 1 cells of an image (C, H, W) in [0, 1] -> (8, H, W), of length 1."""
    padded = np.pad(image.double().numpy(), ((0, 0), (1, 1), (1, 1)), "edge")
    _, height, width = image.shape
    energy = np.zeros((8, height + 2, width + 2))
    for one, row, column in product(padded, range(height), range(width)):
        around = one[row : row + 3, column : column + 3]
        right = ((around[:, 2] - around[:, 0]) * [1, 2, 1]).sum() / 8
        down = ((around[2] - around[0]) * [1, 2, 1]).sum() / 8
        for o in range(8):
            along = max(0, right * math.cos(o * math.pi / 4) + down * math.sin(o * math.pi / 4))
            energy[o, row + 1, column + 1] += along**2 / (math.hypot(right, down) + 1e-6)
    cells = np.zeros((8, height, width))
    for row, column in product(range(height), range(width)):
        cells[:, row, column] = np.sqrt(energy[:, row : row + 3, column : column + 3].mean((1, 2)))
    return cells / np.linalg.norm(cells)


def one_way(x, y, warp):
    """Sum the squared distances of x's cells, with their surroundings, to the best of y's within reach."""
    wide = 2 * warp + 2
    x, y = (np.pad(one, ((0, 0), (wide, wide), (wide, wide))) for one in (x, y))
    inner, total = range(wide, x.shape[1] - wide), 0.0
    for row, column in product(inner, inner):
        here = x[:, row - 1 : row + 2, column - 1 : column + 2]
        places = product(range(row - warp, row + warp + 1), range(column - warp, column + warp + 1))
        total += min(((here - y[:, r - 1 : r + 2, c - 1 : c + 2]) ** 2).sum() / 9 for r, c in places)
    return total


@pytest.mark.parametrize(("warp", "channels"), [(0, 1), (1, 3), (2, 1)])
def test_distances_are_those_of_a_naive_search(warp, channels, monkeypatch):
    bank, query = noise(6, 0, channels, 7), noise(3, 1, channels, 7)
    known = [edges_by_hand(one / 255) for one in bank]
    wanted = []
    for one in query:
        x = edges_by_hand(one / 255)
        found = [math.sqrt((one_way(x, y, warp) + one_way(y, x, warp)) / 2) for y in known]
        wanted.append((sum(sorted(found)[:2]) / 2, int(np.argmin(found))))
    for size in (distortion.AT_ONCE, 1):  # all at once, and image by image
        monkeypatch.setattr(distortion, "AT_ONCE", size)
        monkeypatch.setattr(distortion, "CHUNK", size)
        nearest, distance = fitted(bank, 7, k=2, warp=warp)(query / 255)
        assert distance.numpy() == pytest.approx([one for one, _ in wanted], rel=2e-3)  # edges are kept in 16 bits
        assert torch.equal((nearest * 255).round().byte(), bank[[place for _, place in wanted]])


def test_without_displacement_it_is_the_distance_of_blurred_edges():
    bank, query = noise(20), noise(5, 1)
    distance = fitted(bank, k=1, warp=0, candidates=20)(query / 255)[1]
    assert (distance > 0).all() and (fitted(bank, k=1)(query / 255)[1] <= distance).all()
    assert fitted(bank, k=1)(bank / 255)[1].max() < 2e-3


def test_a_stroke_that_moved_is_near_and_one_more_or_less_is_not():
    def strokes(*columns):
        image = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
        for column in columns:
            image[..., 6:22, column : column + 3] = 255
        return image

    images = torch.cat([strokes(5, 18)] * 4)
    still, moving = (fitted(images, 28, warp=warp) for warp in (0, 1))
    moved, less, more = (
        [float(model(one / 255)[1]) for model in (still, moving)]
        for one in (strokes(7, 18), strokes(5), strokes(5, 12, 18))
    )
    assert moved[1] < 0.3 * moved[0] and moved[1] < 0.3 * min(less[1], more[1])
    assert min(less[1], more[1]) > 0.5 * min(less[0], more[0])


def test_contrast_does_not_count_and_a_blank_image_is_far():
    bank = noise(5) // 2 + 100
    model = fitted(bank, k=1)
    faint = ((bank - 100) // 2 + 100) / 255
    assert model(faint)[1].max() < 0.2 * float(model(torch.zeros(1, 1, SIZE, SIZE))[1])


def test_one_image_one_score():
    model, query = fitted(noise(30, channels=3)), noise(5, 1, 3) / 255
    alone = torch.cat([model(one[None])[1] for one in query])
    assert model(query)[1].numpy() == pytest.approx(alone.numpy(), rel=1e-5)


def test_what_lies_outside_does_not_count():
    content = torch.zeros(10, SIZE, SIZE, dtype=torch.bool)
    content[:, :, :6] = True
    bank, query = noise(10), noise(4, 1)
    model = ImageDistortionModel(SIZE, 1)
    model.fit(bank, content)
    changed = query.where(content[:4, None] | (torch.arange(SIZE) == 6), 255 - query)  # the next column is an edge's
    assert torch.equal(model(query / 255, content[:4])[1], model(changed / 255, content[:4])[1])


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ValueError, match=r"candidates .*k=3"):
        ImageDistortionModel(SIZE, candidates=2)
    with pytest.raises(UserError, match=r"k=3 .* 2 training images"):
        ImageDistortionModel(SIZE, 1).fit(noise(2))
    with pytest.raises(UserError, match="memory_gb=1"):
        ImageDistortionModel(224, memory_gb=1).check(10_000)
