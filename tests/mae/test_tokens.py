import math

import pytest
import torch

from adlight.mae.tokens import PixelTokenizer, patchify, sincos_positions, unpatchify

SIZES = [(1, (28, 28), 4), (3, (28, 28), 2), (2, (6, 6), 6), (3, (5, 5), 1), (3, (32, 16), 8), (1, (4, 12), 4)]


@pytest.mark.parametrize(("channels", "size", "patch"), SIZES)
def test_detokenize_is_the_inverse_of_tokenize(channels, size, patch):
    image = torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0))
    tokenizer = PixelTokenizer(size, channels, patch)
    rows, columns = tokenizer.grid
    assert (rows * patch, columns * patch, tokenizer.dim) == (*size, channels * patch**2)
    tokens = tokenizer.tokenize(image)
    assert tokens.shape == (2, rows * columns, tokenizer.dim) and torch.equal(tokens, patchify(image, patch))
    assert torch.equal(tokenizer.detokenize(tokens), image)
    assert torch.equal(patchify(unpatchify(tokens, patch, tokenizer.grid), patch), tokens)


def test_a_square_image_needs_one_number():
    assert PixelTokenizer(32, 3, 8).grid == (4, 4)


@pytest.mark.parametrize("size", [33, (32, 33), (33, 32)])
def test_images_that_are_no_whole_number_of_patches_are_refused(size):
    with pytest.raises(ValueError, match=r"image_size .*33.* patch_size 8"):
        PixelTokenizer(size, 3, 8)


def test_patches_go_row_by_row_and_values_by_channel():
    image = torch.arange(32).view(1, 2, 4, 4)  # channel 1 holds channel 0 + 16
    assert patchify(image, 2)[0].tolist() == [
        [0, 1, 4, 5, 16, 17, 20, 21],
        [2, 3, 6, 7, 18, 19, 22, 23],
        [8, 9, 12, 13, 24, 25, 28, 29],
        [10, 11, 14, 15, 26, 27, 30, 31],
    ]


@pytest.mark.parametrize(("rows", "columns", "width"), [(5, 5, 12), (2, 3, 8), (3, 1, 4)])
def test_positions_are_the_formula(rows, columns, width):
    table = sincos_positions((rows, columns), width)
    assert table.shape == (rows * columns, width) and table.dtype == torch.float32
    for row in range(rows):
        for column in range(columns):
            steps = range(width // 4)
            angles = [[place / 10000 ** (4 * k / width) for k in steps] for place in (row, column)]
            wanted = [f(angle) for axis in angles for f in (math.sin, math.cos) for angle in axis]
            assert table[row * columns + column].tolist() == pytest.approx(wanted, abs=1e-6)


def test_positions_known_values():
    table = sincos_positions((2, 2), 4)
    s, c = math.sin(1), math.cos(1)
    wanted = torch.tensor([[0, 1, 0, 1], [0, 1, s, c], [s, c, 0, 1], [s, c, s, c]])
    torch.testing.assert_close(table, wanted)


def test_positions_of_the_article_differ_everywhere():
    table = sincos_positions((14, 14), 768)
    distance = torch.cdist(table, table) + 1e9 * torch.eye(196)
    assert table.shape == (196, 768) and distance.min() > 1


@pytest.mark.parametrize("width", [2, 6, 10])
def test_width_must_be_a_multiple_of_4(width):
    with pytest.raises(ValueError, match=f"width {width} .* 4"):
        sincos_positions((3, 3), width)
