from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from adlight.detection.pictures import GAP, TITLE, colour_ceiling, draw_overlay, draw_panel, stack_panels
from adlight.types import Prediction, Record

SIDE = 64
YELLOW = (255, 255, 0)


def prediction(score=0.7, level=0.2, channels=3):
    """Of an image of 8 x 16 pixels: its lower right quarter is above the pixel threshold."""
    mask = np.zeros((8, 16), bool)
    mask[4:, 8:] = True
    anomaly_map = np.full((4, 4), 0.5 * level, np.float32)
    anomaly_map[2:, 2:] = level
    reconstruction = np.full((channels, 4, 4), 0.25, np.float32)
    return Prediction(score, 0.5, 0.1, "bottle", 0.25, [(8, 4, 16, 8)], mask, anomaly_map, reconstruction)


IMAGE = Image.new("RGB", (16, 8), (100, 150, 200))


def parts(panel):
    """The pictures of a panel, in the shape of `IMAGE`, as arrays."""
    pixels = np.asarray(panel)[TITLE:]
    assert len(pixels) == SIDE // 2
    return [pixels[:, left : left + SIDE] for left in range(0, pixels.shape[1], SIDE + GAP)]


def titles(panel):
    """The strip above each picture."""
    pixels = np.asarray(panel)[:TITLE]
    return [pixels[:, left : left + SIDE] for left in range(0, pixels.shape[1], SIDE + GAP)]


def is_red(title):
    return bool(((title[..., 0] > 200) & (title[..., 1:] < 100).all(-1)).any())


def test_the_pixel_threshold_lies_in_the_middle_of_the_colours():
    assert colour_ceiling(0.2) == 0.4 and colour_ceiling(0.0) > 0


@pytest.mark.parametrize("channels", [1, 3])
def test_a_panel_shows_image_reconstruction_error_and_decision(channels):
    image, made, error, decided = parts(draw_panel(IMAGE, prediction(channels=channels), side=SIDE))
    assert (image == (100, 150, 200)).all() and (made == 63).all()
    assert tuple(error[0, 0]) != tuple(error[-1, -1])
    half = SIDE // 2
    assert (decided[: half // 2 - 4] == (100, 150, 200)).all()  # nothing found
    assert tuple(decided[-8, -8]) == (178, 75, 100)  # half red
    assert tuple(decided[half // 2, half]) == tuple(decided[-1, -1]) == YELLOW  # corners of the box


def test_the_true_mask_stands_before_the_decision():
    mask = np.zeros((8, 16), bool)
    mask[:4] = True
    plain, shown = (parts(draw_panel(IMAGE, prediction(), true_mask=one, side=SIDE)) for one in (None, mask))
    assert len(shown) == 5 and all(np.array_equal(a, b) for a, b in zip(plain, shown[:3] + shown[4:], strict=True))
    assert (shown[3][0] == 255).all() and (shown[3][-1] == 0).all()


def test_an_anomaly_without_a_true_mask_is_not_shown_as_an_empty_one():
    records = [Record("a.png", "bottle", "hole", 1, mask) for mask in ("mask.png", None)] + [Record("a.png", "bottle")]
    mask = np.zeros((8, 16), bool)
    shown = [parts(draw_panel(IMAGE, prediction(), record, mask, SIDE))[3] for record in records]
    assert [int(part.max()) for part in shown] == [0, 211, 0]


@pytest.mark.parametrize(
    ("score", "label", "red"), [(0.7, None, True), (0.3, None, False), (0.7, 1, False), (0.7, 0, True), (0.3, 1, True)]
)
def test_anomalies_are_red_and_of_known_images_the_mistakes(score, label, red):
    record = None if label is None else Record("a.png", "bottle", "hole" if label else "good", label)
    strips = titles(draw_panel(IMAGE, prediction(score), record, side=SIDE))
    assert [is_red(strip) for strip in strips] == [False, False, False, red]


def test_one_scale_for_all_pictures_of_a_threshold():
    one, other = (parts(draw_panel(IMAGE, prediction(level=level), side=SIDE))[2] for level in (0.1, 0.2))
    assert np.array_equal(one[-1, -1], other[0, 0])  # the same error has the same colour in both
    higher = replace(prediction(), pixel_threshold=0.2)
    assert not np.array_equal(parts(draw_panel(IMAGE, higher, side=SIDE))[2], other)


def test_an_overlay_in_bands_is_the_same(in_bands):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8))
    found = replace(prediction(), anomaly_map=rng.random((40, 30), np.float32))
    whole = np.asarray(draw_overlay(image.copy(), found))
    in_bands()
    assert np.array_equal(draw_overlay(image, found), whole) and len(np.unique(whole)) > 50


def test_an_overlay_has_the_image_s_size_and_more_colour_where_more_is_found():
    picture = np.asarray(draw_overlay(IMAGE, prediction())).astype(int)
    assert picture.shape == (8, 16, 3)
    assert picture[-1, -1].sum() > picture[0, 0].sum() + 100


def test_panels_are_stacked_under_a_title():
    panel, higher = (draw_panel(image, prediction(), side=SIDE) for image in (IMAGE, IMAGE.resize((16, 16))))
    picture = stack_panels([panel, higher], "bottle")
    assert picture.size == (panel.width, TITLE + panel.height + higher.height + GAP)
    rows = np.asarray(picture)
    assert np.array_equal(rows[TITLE : TITLE + panel.height], np.asarray(panel))
    assert np.array_equal(rows[-higher.height :], np.asarray(higher)) and (rows[:TITLE] < 128).any()


@pytest.mark.parametrize(("size", "part"), [((320, 16), (4 * SIDE + 3 * GAP, 14)), ((16, 320), (10, 3 * SIDE))])
def test_long_images_are_large_enough_to_be_seen(size, part):
    image, mask = Image.new("RGB", size, (100, 150, 200)), np.zeros(size[::-1], bool)
    panel = draw_panel(image, replace(prediction(), mask=mask, boxes=[]), side=SIDE)
    shown = (np.asarray(panel) == (100, 150, 200)).all(-1)
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    wide = size[0] > size[1]
    assert panel.width == 4 * SIDE + 3 * GAP
    assert (len(columns), len(rows)) == ((part[0], 2 * part[1]) if wide else (2 * part[0], part[1]))
