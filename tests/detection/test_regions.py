import numpy as np
import pytest
import torch
from scipy import ndimage

from adlight.detection.predictions import scale_mask
from adlight.detection.regions import bounding_boxes, close_gaps, find_regions, segment
from adlight.metrics.pixel import PixelHistogram
from adlight.metrics.thresholds import Calibration, Threshold


@pytest.fixture(params=["whole", "in bands"])
def bands(request, in_bands):
    """Images are read as a whole, and by bands."""
    if request.param == "in bands":
        in_bands()


def letters(*rows):
    """Pixels of 0 to 9."""
    return np.array([[float(letter) for letter in row] for row in rows], dtype=np.float32)


MAP = letters(
    "5000009",
    "5500030",
    "0000000",
    "0004000",
)


@pytest.mark.usefixtures("bands")
@pytest.mark.parametrize(
    ("threshold", "min_pixels", "wanted"),
    [
        (Threshold(0, 1), 0, "5 55 9 3 4"),  # all that is above the pixel threshold
        (Threshold(0, 3), 0, "5 55 9 4"),  # 3 is not
        (Threshold(0, 1, region=4), 0, "5 55 9 3"),  # 3 hangs together with 9
        (Threshold(0, 1, region=5), 0, "9 3"),
        (Threshold(0, 1, region=9), 0, "9 3"),  # the strongest, whatever normal images show
        (Threshold(0, 1), 2, "5 55 9 3"),
        (Threshold(0, 1), 5, "9 3"),
        (Threshold(0, 9), 0, "9"),  # nothing is above: the peak
        (Threshold(0, 99, region=99), 7, "9"),
    ],
)
def test_regions_that_count(threshold, min_pixels, wanted):
    found = MAP[find_regions(MAP, threshold, min_pixels)]
    assert sorted(found) == sorted(float(letter) for letter in wanted.replace(" ", ""))


@pytest.mark.usefixtures("bands")
def test_normal_images_have_no_region_and_anomalous_ones_do():
    pixel = torch.from_numpy(MAP).expand(3, -1, -1)
    content = torch.ones(3, 4, 7, dtype=torch.bool)
    content[2, :, 3:] = False  # padding
    masks, areas = segment(pixel, [1.0, 1.1, 1.1], [Threshold(1.0, 4.5)] * 3, content, Calibration())
    assert not masks[0].any() and sorted(MAP[masks[1]]) == [5, 5, 5, 9] and sorted(MAP[masks[2]]) == [5, 5, 5]
    assert areas == [0, 4 / 28, 3 / 12]
    masks, _ = segment(pixel, [2.0] * 3, [Threshold(1.0, 2.5)] * 3, content, Calibration(min_area=3 / 28))
    assert sorted(MAP[masks[1]]) == [3, 5, 5, 5, 9]


@pytest.mark.usefixtures("bands")
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


@pytest.mark.usefixtures("bands")
@pytest.mark.parametrize("radius", [1, 1.5, 2, 4])
def test_closing_is_that_of_a_disk(radius):
    mask = np.random.default_rng(0).random((30, 40)) > 0.93
    side = np.arange(-5, 6)
    disk = side[:, None] ** 2 + side**2 <= radius**2
    reference = ndimage.binary_closing(np.pad(mask, 12), disk)[12:-12, 12:-12]
    assert (close_gaps(mask, radius) == reference).all() and reference.sum() > mask.sum()


@pytest.mark.usefixtures("bands")
def test_closed_gaps_join_regions_but_not_over_what_does_not_count():
    pixel, threshold = letters("909", "909", "909"), Threshold(0, 1)
    assert len(bounding_boxes(find_regions(pixel, threshold))) == 2
    assert bounding_boxes(find_regions(pixel, threshold, closing=1)) == [(0, 0, 3, 3)]
    pixel[:, 1] = -np.inf
    assert len(bounding_boxes(find_regions(pixel, threshold, closing=1))) == 2
    assert find_regions(letters("900", "000"), Threshold(0, 1), min_pixels=2, closing=5).sum() == 1


def test_no_regions_and_one_of_everything():
    assert bounding_boxes(np.zeros((4, 6), bool)) == []
    assert bounding_boxes(np.ones((4, 6), bool)) == [(0, 0, 6, 4)]


@pytest.mark.parametrize("reduce", ["max", "mean", "another"])
@pytest.mark.parametrize("rules", [{}, {"min_area": 0.02, "closing": 1.5}, {"pixel": "max"}, {"pixel": "quantile:0.5"}])
def test_of_further_normal_images_no_more_than_the_asked_share_shows_a_region(reduce, rules):
    """Whatever the image score is of, and whatever makes regions: an image has some if it is anomalous."""
    rng, alpha, shares, count = np.random.default_rng(0), 0.1, [], 20
    for _ in range(60):
        maps = ndimage.gaussian_filter(rng.standard_normal((3 * count, 16, 16)), (0, 1, 1)).astype(np.float32)
        score = {"max": maps.max((1, 2)), "mean": maps.mean((1, 2)), "another": rng.random(len(maps))}[reduce]
        pixels, calibration = PixelHistogram(), Calibration(image=f"fpr:{alpha}", **rules)
        normal, scores = torch.from_numpy(maps[:count]), torch.from_numpy(score[:count]).double()
        pixels.update(normal, torch.zeros_like(normal).bool(), torch.zeros(count, dtype=torch.int64))
        calibration.fit(scores, normal.amax((1, 2)).double(), torch.zeros(count).long(), pixels, ["a"])
        used = [calibration.of("a")] * len(maps)
        masks, areas = segment(maps, score.tolist(), used, np.ones(maps.shape, bool), calibration)
        has_region = masks.any((1, 2))
        assert (has_region == (score > used[0].image)).all() and (has_region == (np.array(areas) > 0)).all()
        for mask, pixel in zip(masks[has_region], maps[has_region], strict=True):
            assert mask[np.unravel_index(pixel.argmax(), pixel.shape)] and bounding_boxes(mask)  # that of the peak
        assert has_region[:count].sum() <= alpha * (count + 1)  # of those that it was calibrated on
        shares.append(has_region[count:].mean())
    assert np.mean(shares) <= alpha + 3 * np.std(shares) / np.sqrt(len(shares))


@pytest.mark.parametrize("size", [(3, 2), (7, 5), (16, 9), (64, 48), (5, 100), (100, 5)])
def test_no_region_is_lost_where_an_image_is_smaller_than_its_map(size):
    for row in range(0, 40, 3):
        mask = np.zeros((40, 50), bool)
        mask[row, (7 * row) % 50] = True
        scaled = scale_mask(mask, size)
        assert scaled.shape == size[::-1] and len(bounding_boxes(scaled)) == 1
    mask[:] = False
    assert not scale_mask(mask, size).any()
