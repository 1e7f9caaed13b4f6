"""Our metrics beside scikit-learn's, ADEval's and the plain definition, on the same saved maps; see README.md."""

import argparse
import csv
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from sklearn import metrics as sk

from adlight.metrics.histogram import pixel_metrics
from adlight.metrics.image import image_metrics
from adlight.metrics.pixel import PixelHistogram

HERE = Path(__file__).parent
COLUMNS = ("set", "metric", "other", "adlight", "value", "difference")
SIDE, COUNT = 64, 24


class Maps(NamedTuple):
    """Scores and truth of one test set."""

    pixel: np.ndarray  # (N, H, W) float32
    mask: np.ndarray  # (N, H, W) bool
    image: np.ndarray  # (N,) float64


def generated() -> dict[str, Maps]:
    """Seeded sets: regions of different size on the same noise, whose scores are then bent, tied or moved."""
    random = np.random.default_rng(0)
    mask = np.zeros((COUNT, SIDE, SIDE), bool)
    for i in range(0, COUNT, 3):
        for _ in range(1 + i % 4):  # 1 to 4 regions in two of three images; some touch the border or each other
            y, x, h, w = *random.integers(0, SIDE - 2, 2), *random.integers(2, 16, 2)
            mask[i : i + 2, y : y + h, x : x + w] = True
    noise = ndimage.gaussian_filter(random.normal(size=mask.shape), (0, 1, 1)) * 3
    score = noise + 1.2 * mask * random.uniform(0, 2, (COUNT, 1, 1))
    diagonal = np.zeros_like(mask)
    for i in range(0, COUNT, 2):  # two squares that meet in a corner: one region of eight neighbours, two of four
        diagonal[i, 10:14, 10:14] = diagonal[i, 14:34, 14:34] = True
    spotted = noise + np.where(ndimage.uniform_filter(diagonal * 1.0, (0, 9, 9)) > 0.99, 3, 0)
    tests = {
        "normal": (score, mask),
        "skewed": (np.exp(2 * score), mask),
        "8 levels": (np.round(np.clip(score, -2, 5)), mask),
        "near 1e6": (1e6 + 1e3 * score, mask),
        "corner to corner": (spotted, diagonal),
    }
    return {name: with_image_scores(pixel.astype(np.float32), truth) for name, (pixel, truth) in tests.items()}


def with_image_scores(pixel: np.ndarray, mask: np.ndarray) -> Maps:
    """Score an image by the mean of its highest 1 %, as float64."""
    top = np.sort(pixel.reshape(len(pixel), -1).astype(np.float64))[:, -max(1, pixel[0].size // 100) :]
    return Maps(pixel, mask, top.mean(1))


def of_run(run: Path) -> Maps:
    """The maps of a finished run's own test."""
    from adlight.runs.folder import RunFolder
    from adlight.runs.weights import load_weights
    from adlight.train import build

    config = RunFolder(run).config()
    config.run_dir, config.model.objective = str(run), None
    config.callbacks, config.logger = {}, {}
    data, module, _ = build(config)
    load_weights(module, RunFolder(run).checkpoint(config.ckpt))
    data.setup("test")
    parts = []
    with torch.inference_mode():
        for batch in data.test_dataloader():
            scores = module.eval().score(data.on_after_batch_transfer(batch, 0))
            parts.append((scores["pixel"].float(), batch["mask"], scores["image"].double()))
    return Maps(*(torch.cat(part).numpy() for part in zip(*parts, strict=True)))


def ours(maps: Maps) -> dict[str, float]:
    """What a test of adlight reports; pixels batch by batch."""
    histogram = PixelHistogram()
    for pixel, mask in zip(np.array_split(maps.pixel, 5), np.array_split(maps.mask, 5), strict=True):
        histogram.update(torch.tensor(pixel), torch.tensor(mask), torch.zeros(len(pixel), dtype=torch.long))
    label = torch.tensor(maps.mask.any((1, 2))).long()
    return image_metrics(torch.tensor(maps.image), label, None)[0] | pixel_metrics(histogram.histogram(), None)[0]


def scikit_learn(score: np.ndarray, label: np.ndarray, prefix: str = "") -> dict[str, float]:
    """AUROC, average precision, and the best of scikit-learn's F1 over all thresholds."""
    precision, recall, _ = sk.precision_recall_curve(label, score)
    return {
        f"{prefix}auroc": sk.roc_auc_score(label, score),
        f"{prefix}ap": sk.average_precision_score(label, score),
        f"{prefix}f1_max": (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max(),
    }


def definition(maps: Maps, limit: float = 0.3, structure: np.ndarray | None = None) -> float:
    """AUPRO from its definition (Bergmann 2021): every distinct score is a threshold, every region is counted.

    Regions are 8-connected unless `structure` says otherwise; the curve is a line between two thresholds.
    """
    structure = np.ones((3, 3)) if structure is None else structure
    regions = []
    for pixel, mask in zip(maps.pixel, maps.mask, strict=True):
        label, count = ndimage.label(mask, structure)
        regions += [np.sort(pixel[label == i]) for i in range(1, count + 1)]
    normal = np.sort(maps.pixel[~maps.mask])
    threshold = np.unique(maps.pixel)[::-1]
    above = partial(np.searchsorted, v=threshold, side="left")  # how many lie below; the rest is flagged
    fpr = np.concatenate([[0], 1 - above(normal) / len(normal)])
    pro = np.concatenate([[0], np.mean([1 - above(region) / len(region) for region in regions], 0)])
    at_limit = np.interp(limit, fpr, pro)
    fpr, pro = np.append(fpr[fpr <= limit], limit), np.append(pro[fpr <= limit], at_limit)
    return float(np.trapezoid(pro, fpr) / limit)


def adeval(maps: Maps) -> Iterator[tuple[str, dict[str, float]]]:
    """ADEval 1.1.0 as it comes, with more bins, and MVTec's own evaluation code, of which it carries a copy."""
    if not hasattr(np, "trapz"):
        np.trapz = np.trapezoid  # gone in numpy 2.4
    from adeval import auroc_and_aupr, auroc_aupr_aupro
    from adeval.au_pro import calculate_au_pro

    label, mask = maps.mask.any((1, 2)).astype(np.uint8), maps.mask.astype(np.uint8)
    for bins in (1000, 100_000):
        found = dict(zip(("auroc", "ap"), auroc_and_aupr(maps.image, label, nstrips=bins), strict=True))
        pixel = auroc_aupr_aupro(list(maps.pixel), list(mask), nstrips=bins)
        yield f"ADEval {bins} bins", found | dict(zip(("pixel_auroc", "pixel_ap", "aupro"), pixel, strict=True))
    for thresholds in (100, int((mask == 0).sum())):
        name = "all" if thresholds > 100 else thresholds
        yield f"MVTec's code {name} thresholds", {"aupro": calculate_au_pro(mask, maps.pixel, 0.3, thresholds)[0]}


def others(maps: Maps) -> Iterator[tuple[str, dict[str, float]]]:
    """Every other computation and its figures."""
    label = maps.mask.any((1, 2))
    pixels = scikit_learn(maps.pixel.ravel(), maps.mask.ravel(), "pixel_")
    yield "scikit-learn", scikit_learn(maps.image, label) | pixels
    yield "definition", {"aupro": definition(maps)}
    yield "definition 4 neighbours", {"aupro": definition(maps, structure=ndimage.generate_binary_structure(2, 1))}
    if find_spec("adeval"):
        yield from adeval(maps)


def compare(name: str, maps: Maps) -> list[tuple[str, str, str, float, float, float]]:
    """A row for each figure of each other computation."""
    mine = ours(maps)
    return [
        (name, metric, other, mine[metric], float(value), mine[metric] - float(value))
        for other, found in others(maps)
        for metric, value in found.items()
    ]


def main() -> None:
    """Compare on the generated sets and on what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, action="append", default=[], help="a finished run, to be tested again")
    parser.add_argument("--maps", type=Path, help="folder to save every set to, as <set>.npz (pixel, mask, image)")
    parser.add_argument("--out", type=Path, default=HERE / "measured.csv")
    words = parser.parse_args()
    sets = generated() | {run.name: of_run(run) for run in words.run}
    if words.maps:
        words.maps.mkdir(parents=True, exist_ok=True)
        for name, maps in sets.items():
            np.savez_compressed(words.maps / f"{name}.npz", **maps._asdict())
        loaded = {name: np.load(words.maps / f"{name}.npz") for name in sets}
        sets = {name: Maps(found["pixel"], found["mask"], found["image"]) for name, found in loaded.items()}
    rows = [row for name, maps in sets.items() for row in compare(name, maps)]
    with words.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows((*row[:3], *(f"{value:.9f}" for value in row[3:5]), f"{row[5]:.1e}") for row in rows)
    for row in rows:
        print(f"{row[0]:18} {row[1]:12} {row[2]:28} {row[3]:.6f} {row[4]:.6f} {row[5]:+.1e}")


if __name__ == "__main__":
    main()
