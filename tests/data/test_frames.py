import numpy as np
import pytest
import torch
from PIL import Image

from adlight.data.frames import (
    Frame,
    choose_frame,
    describe_shapes,
    group_by_size,
    is_content,
    parse_size,
    scale_box,
)
from adlight.data.images import to_input_array


@pytest.mark.parametrize(("size", "wanted"), [(8, (8, 8)), ([4, 8], (4, 8)), ((8, 4), (8, 4))])
def test_a_size_is_a_side_or_height_and_width(size, wanted):
    assert parse_size(size) == Frame(size).size == wanted


@pytest.mark.parametrize("size", [0, [8], [8, 8, 8], [0, 8], [8, 2.5], "88", True, None])
def test_other_sizes_are_refused_by_name(size):
    with pytest.raises(ValueError, match=r"\bimage_size\b"):
        Frame(size)


def test_a_crop_is_no_larger_than_what_it_is_cut_from():
    assert Frame([4, 8], [4, 9]).resize == (4, 9)
    with pytest.raises(ValueError, match=r"^resize=5 .* image_size=\[4, 8\]"):
        Frame([4, 8], 5)


def test_a_rectangle_is_cut_out_of_the_centre_and_put_back():
    whole = np.arange(1, 8 * 11 + 1).reshape(8, 11)
    frame = Frame([4, 6], [8, 11])
    assert np.array_equal(frame.cut(whole), whole[2:6, 2:8])
    back = frame.restore(frame.cut(whole), 99, 99)
    assert np.array_equal(back[2:6, 2:8], whole[2:6, 2:8]) and np.count_nonzero(back) == 4 * 6
    assert back.shape == whole.shape
    assert np.array_equal(frame.cut(np.dstack([whole, whole]))[..., 1], whole[2:6, 2:8])


@pytest.mark.parametrize(
    ("frame", "image", "wanted"),  # image: width, height
    [
        ((64, 64), (200, 100), (32, 64)),
        ((64, 64), (100, 200), (64, 32)),
        ((32, 64), (100, 100), (32, 32)),
        ((64, 64), (10, 10), (64, 64)),
        ((64, 64), (300, 101), (22, 64)),
        ((64, 64), (512, 65), (8, 64)),
    ],
)
def test_an_image_that_keeps_its_shape_just_fits(frame, image, wanted):
    assert Frame(frame, keep_shape=True).fit(*image) == wanted
    assert Frame(frame).fit(*image) == frame


def test_the_padding_lies_to_the_right_and_below():
    frame = Frame(64, keep_shape=True)
    array = to_input_array(Image.new("RGB", (200, 100), (9, 8, 7)), 3, frame)
    assert (array[:, :32].T == (9, 8, 7)).all() and not array[:, 32:].any()
    assert np.array_equal(frame.restore(array, 200, 100), array[:, :32])
    content = is_content(torch.tensor([[32, 64], [64, 64], [2, 1]]), torch.zeros(3, 64, 64))
    assert content.sum((1, 2)).tolist() == [32 * 64, 64 * 64, 2]
    assert content[0, :32].all() and content[2, :2, :1].all()
    assert is_content(None, torch.zeros(3, 4, 5)).all()


def test_what_cannot_be_padded_is_refused():
    with pytest.raises(ValueError, match=r"^resize .*\[32, 64\]"):
        Frame(64, [32, 64], keep_shape=True)
    with pytest.raises(ValueError, match=r"^keep_shape .*'auto'"):
        Frame(64, keep_shape="auto")
    with pytest.raises(ValueError, match=r"1000x20 .* 64x1: .*keep_shape"):
        Frame(64, keep_shape=True).fit(1000, 20)


def test_images_of_one_size_are_looked_at_together():
    groups = [
        (rows.tolist(), h, w) for rows, h, w in group_by_size(torch.tensor([[4, 8], [8, 4], [4, 8], [8, 8], [8, 4]]))
    ]
    assert groups == [([0, 2], 4, 8), ([1, 4], 8, 4), ([3], 8, 8)]


def test_boxes_are_rounded_outwards():
    assert scale_box((1, 2, 3, 4), (4, 4), (8, 8)) == (2, 4, 6, 8)
    assert scale_box((1, 1, 2, 2), (3, 3), (10, 5)) == (3, 1, 7, 4)
    assert scale_box((4, 2, 8, 5), (16, 32), (200, 100)) == (25, 12, 50, 32)  # 16 x 32 pixels stand for 100 x 200


SQUARE, TWICE = (100, 100), (200, 100)  # width, height


@pytest.mark.parametrize(
    ("sizes", "side", "image_size", "keep_shape"),
    [
        ([], 320, 320, False),
        ([(900, 900)] * 3 + [(840, 900)], 320, 320, False),  # within a tenth
        ([(800, 320)], 320, [320, 800], False),
        ([(320, 800)], 320, [800, 320], False),
        ([(1000, 100)], 320, [80, 800], True),  # thinner than 1 : 2.5
        ([TWICE, TWICE, (205, 100)], 128, [128, 256], False),
        ([(56, 28)], 28, [28, 56], False),
        ([SQUARE, TWICE], 320, [320, 640], True),
        ([SQUARE, TWICE, (100, 150)], 64, [96, 128], True),
    ],
)
def test_the_shapes_choose_the_frame(sizes, side, image_size, keep_shape):
    resize = side if keep_shape else None
    chosen = choose_frame(sizes, side)
    assert chosen == {"image_size": image_size, "resize": resize, "keep_shape": keep_shape}
    frame = Frame(**chosen)
    for width, height in sizes:
        h, w = frame.fit(width, height)
        assert 1 / 1.1 < (w / h) / (width / height) < 1.1 and h <= frame.size[0] and w <= frame.size[1]
        assert min(h, w) == side or max(h, w) == 2.5 * side


def test_the_shorter_side_is_asked_for():
    frame = Frame([64, 96], 48, keep_shape=True)
    assert [frame.fit(*size) for size in ((100, 100), (200, 100), (100, 200), (300, 100))] == [
        *((48, 48), (48, 96), (64, 32), (32, 96))
    ]


def test_shapes_are_counted():
    said = describe_shapes([(200, 100)] * 5 + [(50, 100)] * 2 + [(100, 100), (100, 90), (100, 80)], 64)
    assert "2.00 (5), 0.50 (2), 1.00 (1), 2 more" in said
    assert "dataset.image_size=[128,128] dataset.resize=64 dataset.keep_shape=true" in said
    assert "dataset.image_size=[64,128]" in describe_shapes([(200, 100)] * 5 + [(210, 100)], 64)
    assert describe_shapes([], 64) == ""
