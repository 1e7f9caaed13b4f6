"""Does val/auroc rank detectors of MNIST's digits as the test does, with each kind of pseudo-anomaly?

python experiments/features/other_classes.py <folder of MNIST/raw> <digit> ... prints a line a detector and digit, and
Spearman's rank correlations; 1,000 test images each, one copy of each held-out image.
"""

import sys
from functools import partial

import torch
from scipy.stats import spearmanr

from adlight.baselines.detector import ResidualScorer
from adlight.baselines.distortion import ImageDistortionModel
from adlight.baselines.networks import PCA, NearestNeighbours
from adlight.data.datamodule import AnomalyDataModule
from adlight.data.torchvision_sets import MNIST
from adlight.metrics.image import image_metrics

ROOT, *DIGITS = sys.argv[1:]
KINDS = ("defects", "classes", "rotations")
DETECTORS = {
    "knn k=1": (partial(NearestNeighbours, k=1), "distance"),
    "knn k=10": (partial(NearestNeighbours, k=10), "distance"),
    "knn k=3 topk of the map": (partial(NearestNeighbours, k=3), "topk"),
    "pca 10": (partial(PCA, components=10), "distance"),
    "pca 40": (partial(PCA, components=40), "distance"),
    "pca 150": (partial(PCA, components=150), "distance"),
    "pca 40 topk of the map": (partial(PCA, components=40), "topk"),
    "idm warp=0": (partial(ImageDistortionModel, warp=0), "distance"),
    "idm grid=7": (partial(ImageDistortionModel, grid=7), "distance"),
    "idm": (partial(ImageDistortionModel), "distance"),
}


def split(digit, kind, part):
    """Give images as bytes and labels of a part: train, val with pseudo-anomalies of a kind, or test."""
    limits = {"test_limit": 1000, "root": ROOT, "normal": int(digit)}
    data = AnomalyDataModule(partial(MNIST, seed=0), image_size=28, channels=1, val_anomalies=kind, **limits)
    data.setup("test" if part == "test" else "fit")
    if part == "train":
        return data.datasets["train"].__getitems__(range(len(data.datasets["train"])))["image"], None
    batches = list(data.val_dataloader() if part == "val" else data.test_dataloader())
    return tuple(torch.cat([batch[key] for batch in batches]) for key in ("image", "label"))


def main():
    """Measure and print."""
    found = {}
    for digit in DIGITS:
        images, parts = split(digit, "defects", "train")[0], [split(digit, kind, "val") for kind in KINDS]
        parts.append(split(digit, "defects", "test"))
        for name, (make, reduce) in DETECTORS.items():
            network, scorer = make(28, 1), ResidualScorer(reduce=reduce)
            network.fit(images)
            for number, (image, label) in enumerate(parts):
                score = [scorer(network, {"image": part / 255})["image"] for part in image.split(250)]
                value, _ = image_metrics(torch.cat(score).double(), label, None)
                found[digit, name, number] = value["auroc"]
            print(digit, f"{name:26}", *(f"{found[digit, name, i]:.4f}" for i in range(len(parts))), flush=True)
    names = list(DETECTORS)
    for number, kind in enumerate(KINDS):
        own = [spearmanr(*([found[d, name, i] for name in names] for i in (number, len(KINDS))))[0] for d in DIGITS]
        mean = [[sum(found[d, name, i] for d in DIGITS) / len(DIGITS) for name in names] for i in (number, len(KINDS))]
        print(f"{kind}: by digit", *(f"{value:.2f}" for value in own), f"of the means {spearmanr(*mean)[0]:.2f}")


if __name__ == "__main__":
    main()
