import math

import pytest
import torch

from adlight.mae.tokens import patchify, sincos_positions, unpatchify


@pytest.mark.parametrize(("channels", "size", "patch"), [(1, 28, 4), (3, 28, 2), (3, 32, 8), (2, 6, 6), (3, 5, 1)])
def test_unpatchify_is_the_inverse(channels, size, patch):
    image = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    patches = patchify(image, patch)
    assert patches.shape == (2, (size // patch) ** 2, channels * patch**2)
    assert torch.equal(unpatchify(patches, patch, channels), image)
    assert torch.equal(patchify(unpatchify(patches, patch, channels), patch), patches)


def test_patches_go_row_by_row_and_values_by_channel():
    image = torch.arange(32).view(1, 2, 4, 4)  # channel 1 holds channel 0 + 16
    assert patchify(image, 2)[0].tolist() == [
        [0, 1, 4, 5, 16, 17, 20, 21],
        [2, 3, 6, 7, 18, 19, 22, 23],
        [8, 9, 12, 13, 24, 25, 28, 29],
        [10, 11, 14, 15, 26, 27, 30, 31],
    ]


def test_images_need_not_be_square():
    image = torch.arange(8).view(1, 1, 2, 4)
    assert patchify(image, 2)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_positions_are_the_formula():
    side, width = 5, 12
    table = sincos_positions(side, width)
    assert table.shape == (25, 12) and table.dtype == torch.float32
    for row in range(side):
        for column in range(side):
            angles = [[place / 10000 ** (k / 3) for k in range(3)] for place in (row, column)]
            wanted = [f(angle) for axis in angles for f in (math.sin, math.cos) for angle in axis]
            assert table[row * side + column].tolist() == pytest.approx(wanted, abs=1e-6)


def test_positions_known_values():
    table = sincos_positions(2, 4)
    s, c = math.sin(1), math.cos(1)
    wanted = torch.tensor([[0, 1, 0, 1], [0, 1, s, c], [s, c, 0, 1], [s, c, s, c]])
    torch.testing.assert_close(table, wanted)


def test_positions_of_the_article_differ_everywhere():
    table = sincos_positions(14, 768)
    distance = torch.cdist(table, table) + 1e9 * torch.eye(196)
    assert table.shape == (196, 768) and distance.min() > 1


@pytest.mark.parametrize("width", [2, 6, 10])
def test_width_must_be_a_multiple_of_4(width):
    with pytest.raises(ValueError, match=f"width {width} is not a multiple of 4"):
        sincos_positions(3, width)
