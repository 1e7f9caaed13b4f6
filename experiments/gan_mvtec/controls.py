"""How much of the GAN's score is the GAN? `python experiments/gan_mvtec/controls.py <run> [<run> ...]`.

Compares the reconstructions of finished runs with two that need no GAN, each by the plain squared error and by the
error whitened by the covariance of training images' residuals (`model.scorer.distance=mahalanobis`):

gan     G(E(x)), where the run is a GAN's; the others need only the run's images, so that a run of PCA will do
mean    the mean of the training images, for every image
pca     the span of the first 40 principal components

Prints, per run and as means of several, the AUROC on validation, the held-out normal images against five synthetic
anomalies of each of them (`defects`, `classes`, `rotations`). `--test` adds the test, which steers nothing. The columns
`train`, `held out` and `test normal` are the mean squared errors of normal images, in units of 1e-4.
"""

import sys
from pathlib import Path

import pandas as pd
import torch
from hydra.utils import instantiate

from adlight.detector import Detector
from adlight.features.cache import images_of
from adlight.gan.detector import InversionDetector
from adlight.gan.terms import RESIDUAL, fit_residual_whitening, whitened_map
from adlight.metrics.image import auroc
from adlight.runs.folder import RunFolder

KINDS = ("defects", "classes", "rotations")
COPIES, COMPONENTS = 5, 40


def read(config, split, **settings):
    data = instantiate(config, **settings, _convert_="all")
    data.prepare_data()
    images = images_of(data, split)
    batch = images.__getitems__(range(len(images)))
    image, label = batch["image"].float() / 255, batch["label"] > 0
    return image[~label], image[label]


def reconstructions(module, train):
    """Functions that reconstruct images (B, C, H, W), by name."""
    mean = train.mean(0)
    basis = torch.linalg.svd((train - mean).flatten(1), full_matrices=False)[2][:COMPONENTS]  # (K, P)
    found = {"gan": lambda x: module.networks.generator(module.networks.encoder(x))}
    return (found if isinstance(module, InversionDetector) else {}) | {
        "mean": lambda x: mean.expand_as(x),
        "pca": lambda x: mean + ((x - mean).flatten(1) @ basis.T @ basis).view_as(x),
    }


def compare(error, normal, anomalous):
    label = torch.cat([torch.zeros(len(normal)), torch.ones(len(anomalous))]).long()
    return float(auroc(torch.cat([error(normal), error(anomalous)]), label))


@torch.no_grad()
def measure(config, module, test):
    """The errors of normal images, and the AUROC of every score on every set."""
    train = read(config, "train")[0]
    sets = {kind: read(config, "val", val_anomalies=kind, val_defects=COPIES) for kind in KINDS}
    sets |= {"test": read(config, "test")} if test else {}
    rows = {}
    for name, reconstruct in reconstructions(module, train).items():
        fitted = fit_residual_whitening(train - reconstruct(train))
        scale = [fitted[key] for key in RESIDUAL]
        errors = {
            "plain": lambda x, y: (x - y).square().flatten(1).mean(1),
            "whitened": lambda x, y, scale=scale: whitened_map(x, y, *scale).flatten(1).mean(1),
        }
        normal = {"train": train, "held out": sets["defects"][0]} | ({"test normal": sets["test"][0]} if test else {})
        squares = {key: 1e4 * float((x - reconstruct(x)).square().mean()) for key, x in normal.items()}
        for kind, error in errors.items():
            areas = {
                key: compare(lambda x, r=reconstruct, e=error: e(x, r(x)), *pair)  # at most 100 images
                for key, pair in sets.items()
            }
            rows[f"{name}, {kind}"] = areas | squares
    return pd.DataFrame(rows).T


def main():
    torch.set_num_threads(1)
    paths = [argument for argument in sys.argv[1:] if argument != "--test"]
    tables = {
        run: measure(RunFolder(run).config().dataset, Detector.load(run).module, "--test" in sys.argv)
        for run in map(Path, paths)
    }
    if len(tables) > 1:
        tables["mean"] = sum(tables.values()) / len(tables)
    for name, table in tables.items():
        print(f"{name}\n{table.round(4).to_string()}")


if __name__ == "__main__":
    main()
