from itertools import pairwise

import pytest
import torch

from adlight.metrics.histogram import aupro, pixel_metrics
from adlight.metrics.pixel import UNITS, PixelHistogram, region_weights


def score_of(pixel, mask, limit=0.3):
    metric = PixelHistogram()
    metric.update(pixel, mask, torch.zeros(len(pixel), dtype=torch.long))
    histogram = metric.histogram()
    false_positive, overlap = (counts.flip(0).cumsum(0) for counts in (histogram.pixels[0], histogram.overlap))
    found = aupro(false_positive, overlap, limit)
    assert limit != 0.3 or pixel_metrics(histogram, None)[0]["aupro"] == found
    return found


def neighbours(mask, y, x):
    near = [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return [(i, j) for i, j in near if 0 <= i < len(mask) and 0 <= j < len(mask[0]) and mask[i][j]]


def regions_of(mask):
    """Flood fill, as sets of (y, x)."""
    left, found = {(y, x) for y, row in enumerate(mask) for x, on in enumerate(row) if on}, []
    while left:
        region, edge = set(), [left.pop()]
        while edge:
            here = edge.pop()
            region.add(here)
            new = [n for n in neighbours(mask, *here) if n in left]
            left -= set(new)
            edge += new
        found.append(region)
    return found


def brute_force(pixel, mask, limit=0.3):
    """AUPRO by its definition: every score a threshold, every region looked at alone."""
    regions = [(b, region) for b, m in enumerate(mask.tolist()) for region in regions_of(m)]
    points = [(0.0, 0.0)]
    for threshold in pixel.unique().flip(0):
        flagged = pixel >= threshold
        overlap = [sum(flagged[b, y, x].item() for y, x in region) / len(region) for b, region in regions]
        points.append((flagged[~mask].double().mean().item(), sum(overlap) / len(overlap)))
    area = 0.0
    for (f0, p0), (f1, p1) in pairwise(points):
        if f0 < limit and f1 > f0:
            end = min(f1, limit)
            area += (end - f0) * (p0 + p0 + (p1 - p0) * (end - f0) / (f1 - f0)) / 2
    return area / limit


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_equal_to_brute_force(seed, limit):
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(3, 9, 11, generator=g) < (0.03, 0.2, 0.4)[seed % 3]
    mask[0] = seed % 2 == 0 and mask[0]  # a normal image among them
    pixel = torch.randn(3, 9, 11, generator=g) + mask
    pixel = pixel.round() if seed >= 3 else pixel  # ties
    assert score_of(pixel, mask, limit) == pytest.approx(brute_force(pixel, mask, limit), abs=1e-9)


def test_perfect_constant_and_inverted_maps():
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[0, 2:5, 3:6] = mask[1, 0, 0] = True
    assert score_of(mask.float(), mask) == 1
    assert score_of(torch.zeros(2, 8, 8), mask) == pytest.approx(0.15)  # the diagonal up to 0.3, over 0.3
    assert score_of(-mask.float(), mask) == 0


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75])
def test_staircase(share):
    """One region found to a share before any false alarm, the rest after every normal pixel: a flat line."""
    mask = torch.zeros(1, 4, 8, dtype=torch.bool)
    mask[0, 0] = True
    pixel = torch.full((1, 4, 8), 0.5)
    pixel[0, 0] = 0.0
    pixel[0, 0, : int(8 * share)] = 1.0
    pixel[~mask] = torch.linspace(0.4, 0.6, 24)
    assert score_of(pixel, mask) == pytest.approx(share)


def test_each_region_counts_the_same_whatever_its_size():
    mask = torch.zeros(1, 20, 20, dtype=torch.bool)
    mask[0, :10] = True  # 200 pixels
    mask[0, 19, 19] = True  # 1 pixel
    pixel = torch.rand(1, 20, 20, generator=torch.Generator().manual_seed(0)) * 0.1
    pixel[0, 19, 19], pixel[0, :10] = 1.0, -1.0  # the small one is found, the large one last
    assert score_of(pixel, mask) == pytest.approx(0.5)


def test_a_step_that_crosses_the_limit_is_a_line():
    # (0, 0) -> (0.2, 0.5) -> (0.6, 1.0): at 0.3 the overlap is 0.625
    area = 0.2 * 0.25 + 0.1 * (0.5 + 0.625) / 2
    got = aupro(torch.tensor([20, 60, 100]), torch.tensor([50, 100, 100]))
    assert got == pytest.approx(area / 0.3)


def test_regions_are_eight_connected_touch_borders_and_never_another_image():
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, 0, 0] = mask[0, 1, 1] = True  # diagonal: one region of two
    mask[0, 3, 3] = True  # alone in the corner
    mask[1, 3, 3] = mask[1, 3, 2] = mask[1, 2, 3] = True  # lies over the other image's corner
    weight = torch.zeros(mask.shape, dtype=torch.float64)
    weight[mask] = region_weights(mask).double() / UNITS
    assert weight[0, 0, 0] == weight[0, 1, 1] == 1 / 2
    assert weight[0, 3, 3] == 1
    assert weight[1, 3, 3] == pytest.approx(1 / 3)
    assert weight.sum().item() == pytest.approx(3)


def test_a_mask_without_regions_weighs_nothing():
    assert region_weights(torch.zeros(2, 3, 3, dtype=torch.bool)).tolist() == []
    assert region_weights(torch.ones(1, 2, 2, dtype=torch.bool)).tolist() == [UNITS // 4] * 4
