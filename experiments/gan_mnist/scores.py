"""Scores that were tried beside the GAN's own: `python experiments/gan_mnist/scores.py <run> [<run> ...]`.

Prints the AUROC of each on validation images, held-out normals against copies that are changed as a whole (`classes`),
rotated (`rotations`) or have a defect (`defects`), and on the test images; of several runs, then their means. All are
fitted to training images.

cosine        1 - cosine similarity of the features of image and reconstruction, mean over a network's layers
correlation   the same of features less their mean over training images
whitened      last features of both scaled to length 1; length of their difference, whitened by the covariance of
              training images' differences over all places (`model.scorer.feature=whitened`)
nearest       distance of the critic's last features, scaled to length 1, to those of the two nearest training images
bounded       cosine, the latent drawn to the mean of training images' latents where it is farther from it than half of
              them, or than 9 of 10
latent        Mahalanobis distance of the latent to those of training images (`model.scorer.latent=mahalanobis`)
"""

import sys
from pathlib import Path

import pandas as pd
import torch
from hydra.utils import instantiate
from torch.nn import functional as F

from adlight.detector import Detector
from adlight.features.cache import images_of
from adlight.gan.terms import fit_whitening, unit_differences, whitened_distance
from adlight.metrics.image import auroc
from adlight.runs.folder import RunFolder

BATCH = 256
KINDS = ("classes", "rotations", "defects")
OTHERS = ("cosine, encoder", "whitened, critic", "nearest, critic", "latent")  # each added to the cosine distance


def read(config, split, kind="classes"):
    data = instantiate(config, val_anomalies=kind, _convert_="all")
    data.prepare_data()
    images = images_of(data, split)
    batches = [images.__getitems__(range(i, min(i + BATCH, len(images)))) for i in range(0, len(images), BATCH)]
    label = torch.cat([batch["label"] for batch in batches]) > 0
    image = torch.cat([batch["image"] for batch in batches]).float() / 255
    return image[~label], image[label]


def apply(network, image):
    return torch.cat([network(part) for part in image.split(BATCH)])


def features(network, image):
    maps = [network.feature_maps(part) for part in image.split(BATCH)]
    return [torch.cat(layer) for layer in zip(*maps, strict=True)]


def cosine(network, x, y, means=None):
    pairs = zip(network.feature_maps(x), network.feature_maps(y), means or [0, 0, 0], strict=True)
    return torch.stack([(unit(a - m) - unit(b - m)).square().flatten(1).sum(1) / 2 for a, b, m in pairs]).mean(0)


def unit(maps):
    return F.normalize(maps.flatten(1)).view_as(maps)


class Scores:
    """All scores of one run, fitted to its training images."""

    def __init__(self, module, train):
        self.networks = self.generator, self.critic, self.encoder = module.networks
        latent = apply(self.encoder, train)
        self.center = latent.mean(0)
        self.latent_whitening = fit_whitening([(latent - self.center)[:, None]])
        self.radius = (latent - self.center).norm(dim=1).quantile(torch.tensor([0.5, 0.9]))
        self.bank = apply(lambda x: unit(self.critic.feature_maps(x)[-1]).flatten(1), train)
        shown = apply(lambda x: self.generator(self.encoder(x)), train)
        parts = list(zip(train.split(BATCH), shown.split(BATCH), strict=True))
        self.means = {net: [maps.mean(0) for maps in features(net, train)] for net in (self.critic, self.encoder)}
        self.whitening = {
            net: fit_whitening(unit_differences(net, *part) for part in parts) for net in (self.critic, self.encoder)
        }

    def __call__(self, image):
        rows = [self.score(part) for part in image.split(BATCH)]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def score(self, x):
        critic, encoder, z = self.critic, self.encoder, self.encoder(x)
        y = self.generator(z)
        found = {"cosine, critic": cosine(critic, x, y), "cosine, encoder": cosine(encoder, x, y)}
        for name, net in (("critic", critic), ("encoder", encoder)):
            found[f"correlation, {name}"] = cosine(net, x, y, self.means[net])
            found[f"whitened, {name}"] = whitened_distance(net, x, y, self.whitening[net])
        distance = torch.cdist(unit(critic.feature_maps(x)[-1]).flatten(1), self.bank)
        found["nearest, critic"] = distance.topk(2, largest=False).values.mean(1)
        for share, radius in zip((0.5, 0.9), self.radius, strict=True):
            offset = z - self.center
            near = self.center + offset * (radius / offset.norm(dim=1, keepdim=True)).clamp(max=1)
            found[f"bounded, {share}"] = cosine(critic, x, self.generator(near))
        found["latent"] = ((z - self.center) @ self.latent_whitening).square().mean(1).sqrt()
        return found


def compare(normal, anomalous):
    label = torch.cat([torch.zeros(len(normal)), torch.ones(len(anomalous))]).long()
    return float(auroc(torch.cat([normal, anomalous]), label))


@torch.no_grad()
def measure(run):
    """The AUROC of each score of a run, by validation and test."""
    config = RunFolder(run).config().dataset
    sets = {kind: read(config, "val", kind) for kind in KINDS} | {"test": read(config, "test")}
    scores = Scores(Detector.load(run).module, read(config, "train")[0])
    found = {name: [scores(images) for images in pair] for name, pair in sets.items()}
    parts, reference = [part for pair in found.values() for part in pair], dict(found["classes"][0])
    for name, values in reference.items():  # standardized by held-out normals, as in the detector's mixture
        for part in parts:
            part[name] = (part[name] - values.mean()) / values.std()
    for part in parts:
        part |= {f"cosine, critic + {other}": part["cosine, critic"] + part[other] for other in OTHERS}
    names = found["test"][0]
    return pd.DataFrame({kind: {name: compare(a[name], b[name]) for name in names} for kind, (a, b) in found.items()})


def main():
    torch.set_num_threads(1)
    tables = {run: measure(run) for run in map(Path, sys.argv[1:])}
    if len(tables) > 1:
        tables["mean"] = sum(tables.values()) / len(tables)
    for name, table in tables.items():
        print(f"{name}\n{table.round(4).to_string()}")


if __name__ == "__main__":
    main()
