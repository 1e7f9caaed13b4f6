import numpy as np
import torch

from adlight.detection.regions import bounding_boxes, segment


def test_pixels_above_each_image_s_own_threshold():
    pixel = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]).expand(3, 2, 2)
    content = torch.ones(3, 2, 2, dtype=torch.bool)
    content[2, 1] = False  # padding
    masks, areas = segment(pixel, [2.0, 4.0, 1.0], content)
    assert masks.tolist() == [[[False, False], [True, True]], [[False] * 2] * 2, [[False, True], [False, False]]]
    assert areas == [0.5, 0.0, 0.5]


def test_regions_are_8_connected_and_the_largest_comes_first():
    rows = [
        "#.....##",
        ".#....##",
        "......##",
        "....#...",
        "#.......",
    ]
    mask = np.array([[letter == "#" for letter in row] for row in rows])
    boxes = bounding_boxes(mask)
    # left, top, right, bottom; the two diagonal pixels are one region, and so is (4, 3) on its own
    assert boxes == [(6, 0, 8, 3), (0, 0, 2, 2), (4, 3, 5, 4), (0, 4, 1, 5)]
    assert bounding_boxes(mask[:, ::-1].T)[0] == (0, 0, 3, 2)


def test_no_regions_and_one_of_everything():
    assert bounding_boxes(np.zeros((4, 6), bool)) == []
    assert bounding_boxes(np.ones((4, 6), bool)) == [(0, 0, 6, 4)]
