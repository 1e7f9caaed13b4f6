import math

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from sklearn import metrics as sk

from adlight.metrics.histogram import pixel_metrics
from adlight.metrics.pixel import PixelHistogram, from_key, to_key

SHAPE = (8, 96, 96)  # 73,728 pixels


def masks(generator, shape):
    mask = torch.zeros(shape, dtype=torch.bool)
    for image in mask[::2]:
        y, x = torch.randint(0, 60, (2,), generator=generator).tolist()
        image[y : y + 30, x : x + 20] = True
    return mask


def maps(name, seed=0, shape=SHAPE):
    """Return pixel scores and masks, both of this shape; defects score higher by about one unit of spread."""
    g = torch.Generator().manual_seed(seed)
    mask = masks(g, shape)
    normal, flat = torch.randn(shape, generator=g), torch.rand(shape, generator=g)
    shifted = normal + mask
    pixel = {
        "normal": lambda: shifted,
        "log-normal": lambda: shifted.exp(),
        "tiny and heavy-tailed": lambda: 1e-6 * shifted.square() * (2 * flat).exp(),
        "tied": lambda: (3 * shifted).round(),
        "bimodal": lambda: torch.where(flat < 0.5 - 0.3 * mask, 0.01 + 1e-3 * shifted, 50 + 0.1 * shifted),
        "100 +- 0.5": lambda: 99.5 + 0.8 * flat + 0.2 * mask,
        "1e6 +- 0.5": lambda: 1e6 - 0.5 + 0.8 * flat + 0.2 * mask,
        "1e6 and zeros": lambda: torch.where(flat < 0.3, 0.0, 1e6 + shifted),
        "1e6 +- 1e5": lambda: 1e6 + 1e5 * shifted,
        "all equal": lambda: torch.full(shape, 3.25),
        "negative": lambda: -(-shifted).exp(),
    }[name]()
    return pixel, mask


NAMES = ["normal", "log-normal", "tiny and heavy-tailed", "tied", "bimodal", "100 +- 0.5", "1e6 +- 0.5"]
NAMES += ["1e6 and zeros", "1e6 +- 1e5", "all equal", "negative"]


def filled(pixel, mask, group=None, groups=1, bins=2**20, batch=4):
    metric = PixelHistogram(groups, bins)
    group = torch.zeros(len(pixel), dtype=torch.long) if group is None else group
    for i in range(0, len(pixel), batch):
        metric.update(pixel[i : i + batch], mask[i : i + batch], group[i : i + batch])
    return metric


def exact(pixel, mask, threshold):
    y, s = mask.flatten().numpy(), pixel.flatten().double().numpy()
    precision, recall, _ = sk.precision_recall_curve(y, s)
    f1 = (2 * precision * recall / (precision + recall).clip(1e-300)).max()
    iou = sk.jaccard_score(y, s > threshold)
    return sk.roc_auc_score(y, s), sk.average_precision_score(y, s), f1, iou


def metrics_of(histogram, threshold):
    """AUROC, average precision, best F1 and IoU."""
    found, _ = pixel_metrics(histogram, histogram.flagged(threshold))
    return tuple(found[f"pixel_{name}"] for name in ("auroc", "ap", "f1_max", "iou_calibrated"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("bins", "worst"), [(2**20, 1e-9), (2**16, 1e-4)], ids=["roomy", "crowded"])
def test_equal_to_scikit_learn(name, bins, worst):
    """Exact while distinct scores fit; where they do not (73,728 in 65,536 bins) within the stated 1e-4."""
    pixel, mask = maps(name)
    metric = filled(pixel, mask, bins=bins)
    histogram = metric.histogram()
    threshold = histogram.quantile(0.95)
    assert metrics_of(histogram, threshold) == pytest.approx(exact(pixel, mask, threshold), abs=worst)
    assert len(histogram.lower) <= bins


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bins", [2**20, 2**16])
def test_the_stated_error_on_three_million_pixels(name, bins):
    pixel, mask = maps(name, shape=(64, 224, 224))
    histogram = filled(pixel, mask, bins=bins, batch=32).histogram()
    threshold = histogram.quantile(0.95)
    assert metrics_of(histogram, threshold) == pytest.approx(exact(pixel, mask, threshold), abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_best_thresholds_f1_is_what_it_gives(name):
    pixel, mask = maps(name)
    best, _ = pixel_metrics(filled(pixel, mask, bins=2**12).histogram(), None)
    flagged = pixel > best["pixel_f1_max_threshold"]
    hits = (flagged & mask).sum().item()
    assert best["pixel_f1_max"] == pytest.approx(2 * hits / (flagged.sum() + mask.sum()).item())


@pytest.mark.parametrize("bins", [2**20, 2**10])
def test_batches_order_and_halves_do_not_matter(bins):
    pixel, mask = maps("log-normal")
    pixel[5] *= 1e4  # ranges differ between the halves
    whole = filled(pixel, mask, bins=bins).compute()
    turn = torch.randperm(len(pixel), generator=torch.Generator().manual_seed(3))
    for other in (
        filled(pixel[turn], mask[turn], bins=bins, batch=3),
        filled(pixel, mask, bins=bins, batch=8),
        filled(pixel, mask, bins=bins, batch=1),
    ):
        assert all(torch.equal(a, b) for a, b in zip(whole, other.compute(), strict=True))
    first, second = filled(pixel[:2], mask[:2], bins=bins), filled(pixel[2:], mask[2:], bins=bins, batch=1)
    first.rows, first.shift = first.rows + second.rows, torch.maximum(first.shift, second.shift)
    assert all(torch.equal(a, b) for a, b in zip(whole, first.compute(), strict=True))


@pytest.mark.parametrize("chunk", [1, 3 * SHAPE[1] * SHAPE[2]])
def test_a_batch_is_counted_in_parts_to_the_same_bins(monkeypatch, chunk):
    pixel, mask = maps("log-normal")
    group, counted = torch.arange(len(pixel)) % 2, pixel < pixel.quantile(0.9)
    whole, parts = PixelHistogram(2, 2**11), PixelHistogram(2, 2**11)
    whole.update(pixel, mask & counted, group, counted)
    monkeypatch.setattr("adlight.metrics.pixel.CHUNK", chunk)
    parts.update(pixel, mask & counted, group, counted)
    assert parts.shift > 0
    assert all(torch.equal(a, b) for a, b in zip(whole.compute(), parts.compute(), strict=True))


def test_memory_is_bounded_by_bins_not_by_images():
    metric = PixelHistogram(2, bins=500)
    for seed in range(6):
        pixel, mask = maps("normal", seed)
        metric.update(pixel, mask, torch.arange(len(pixel)) % 2)
        assert sum(map(len, metric.rows)) <= 2 * 500
    assert len(metric.compute()[0]) <= 500
    assert metric.histogram().pixels.sum() == 6 * math.prod(SHAPE)


def test_groups_are_apart_and_pool_to_the_whole():
    pixel, mask = maps("normal")
    group = torch.tensor([0, 0, 0, 2, 2, 2, 2, 0])  # group 1 stays empty
    metric = filled(pixel, mask, group, groups=3)
    one, two = (filled(pixel[group == g], mask[group == g]).histogram() for g in (0, 2))
    for got, alone in ((metric.histogram(0), one), (metric.histogram(2), two)):
        assert all(torch.equal(a, b) for a, b in zip(got, alone, strict=True))
    pooled, whole = metric.histogram(), filled(pixel, mask).histogram()
    assert all(torch.equal(a, b) for a, b in zip(pooled, whole, strict=True))
    assert torch.equal(sum(metric.histogram(g).pixels.sum(1) for g in range(3)), pooled.pixels.sum(1))
    assert pixel_metrics(metric.histogram(1), None)[0] == {}


def gather(rank, path):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    pixel, mask = maps("log-normal")
    for parts in ([slice(0, 3), slice(3, 8)], [slice(0, 3), None], [None, None]):
        metric, alone = PixelHistogram(1, 2**10), PixelHistogram(1, 2**10)
        alone.distributed_available_fn = lambda: False
        for owner, part in enumerate(parts):
            if part is not None:
                whole = (pixel[part], mask[part], torch.zeros(len(pixel[part]), dtype=torch.long))
                alone.update(*whole)
                if owner == rank:
                    metric.update(*whole)
        assert all(torch.equal(a, b) for a, b in zip(metric.compute(), alone.compute(), strict=True))
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one_even_where_one_has_no_images(tmp_path):
    mp.start_processes(gather, (tmp_path / "gloo",), nprocs=2, start_method="forkserver")


def test_by_hand():
    pixel = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])
    mask = torch.tensor([[[True, False], [True, False]]])
    histogram = filled(pixel, mask).histogram()
    assert histogram.lower.tolist() == histogram.upper.tolist() == [1, 2, 3, 4]
    assert histogram.pixels.tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]
    assert metrics_of(histogram, 1.0) == pytest.approx((3 / 4, 0.5 + 0.5 * 2 / 3, 4 / 5, 2 / 3))
    assert pixel_metrics(histogram, None)[0]["pixel_f1_max_threshold"] == pytest.approx(2.0)
    assert [metrics_of(histogram, threshold)[3] for threshold in (2.0, 9.0)] == [1 / 3, 0]
    assert histogram.quantile(0.5) == 1
    assert histogram.quantile(0.51) == 3


@pytest.mark.parametrize("share", [0.0, 0.07, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("bins", [2**20, 2**8])
def test_quantile_keeps_its_word(share, bins):
    pixel, mask = maps("normal")
    metric = filled(pixel, mask, bins=bins)
    value, normal = metric.histogram().quantile(share), pixel[~mask].double()
    assert (normal > value).double().mean() <= 1 - share + 1e-12
    width = 2.0 ** (metric.compute()[1].item() - 22)  # of a bin, relative to its score
    assert value == pytest.approx(np.quantile(normal.numpy(), share, method="inverted_cdf"), rel=width)


@pytest.mark.parametrize(("on", "reason"), [(False, "no anomalous pixels"), (True, "no normal pixels")])
def test_a_missing_class_leaves_metrics_out_with_a_word_why(on, reason):
    pixel, mask = maps("normal")
    histogram = filled(pixel, torch.full_like(mask, on)).histogram()
    values, reasons = pixel_metrics(histogram, histogram.flagged(0.0))
    assert values == ({"pixel_iou_calibrated": pytest.approx((pixel > 0).double().mean().item())} if on else {})
    assert set(reasons.values()) == {reason}
    assert len(values) + len(reasons) == 6


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_pixels_at_all():
    histogram = filled(torch.zeros(0, 4, 4), torch.zeros(0, 4, 4, dtype=torch.bool)).histogram()
    assert set(pixel_metrics(histogram, histogram.flagged(0.0))[1].values()) == {"no pixels"}


def test_without_or_with_a_broken_threshold():
    histogram = filled(*maps("normal")).histogram()
    values, reasons = pixel_metrics(histogram, None)
    assert reasons == {"pixel_iou_calibrated": "no calibrated threshold"}
    assert list(values) == ["pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_f1_max_threshold", "aupro"]
    with pytest.raises(ValueError, match="threshold"):
        histogram.flagged(math.nan)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e39])
def test_not_finite_pixels_are_named_by_image(bad):
    pixel = torch.zeros(3, 2, 2, dtype=torch.float64)
    pixel[1, 0, 1] = bad
    metric = PixelHistogram()
    with pytest.raises(ValueError, match=r"\[1\]"):
        metric.update(pixel, torch.zeros(3, 2, 2, dtype=torch.bool), torch.zeros(3, dtype=torch.long))
    assert sum(map(len, metric.rows)) == 0


@pytest.mark.parametrize("group", [-1, 2])
def test_unknown_groups_are_refused(group):
    with pytest.raises(ValueError, match=f"{group}.*not in 0...1"):
        filled(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.bool), torch.tensor([group]), groups=2)


def test_keys_sort_like_scores_and_come_back():
    largest = torch.finfo(torch.float32).max
    score = torch.tensor([-largest, -1e6, -1.0, -1e-45, 0.0, 1e-45, 1.0, 1.0000001, 1e6, largest])
    key = to_key(score)
    assert (key.diff() > 0).all()
    assert key.min() > 0 and key.max() < 2**32
    assert torch.equal(from_key(key), score)
    assert to_key(torch.tensor(-0.0)) == to_key(torch.tensor(0.0))


def test_the_largest_floats_stay_finite_in_wide_bins():
    largest = torch.finfo(torch.float32).max
    pixel = torch.linspace(-1, 1, 4096).mul(largest).reshape(1, 64, 64)
    histogram = filled(pixel, pixel > 0, bins=16).histogram()
    assert histogram.upper.isfinite().all() and histogram.lower.isfinite().all()
    assert pixel_metrics(histogram, None)[0]["pixel_auroc"] == 1


def test_reset_forgets():
    pixel, mask = maps("normal")
    metric = filled(pixel, mask, bins=2**10)
    metric.reset()
    assert metric.shift == 0
    metric.update(pixel[:4], mask[:4], torch.zeros(4, dtype=torch.long))
    assert metric.histogram().pixels.sum() == pixel[:4].numel()


def test_padding_is_not_counted():
    pixel, mask = maps("log-normal")
    counted = torch.zeros_like(mask)
    counted[:, :20, :30] = True
    padded, cut = (PixelHistogram(1) for _ in range(2))
    group = torch.zeros(len(pixel), dtype=torch.long)
    padded.update(pixel, mask & counted, group, counted)
    cut.update(pixel[:, :20, :30], mask[:, :20, :30], group)
    assert torch.equal(padded.compute()[0], cut.compute()[0])
