"""Scores that were tried beside the GAN's own: `python experiments/gan_mnist/scores.py <run> [<run> ...]`.

Prints the AUROC of each on validation images, held-out normals against copies that are changed as a whole (`classes`)
or have a defect (`defects`), and on the test images. All are fitted to training images; the first is the detector's.

cosine        1 - cosine similarity of the features of image and reconstruction, mean over a network's layers
correlation   the same of features less their mean over training images
whitened      last features of both scaled to length 1; length of their difference, whitened by the covariance of
              training images' differences over all places (`model.scorer.feature=whitened`)
nearest       distance of the critic's last features, scaled to length 1, to those of the two nearest training images
bounded       cosine, the latent drawn to the mean of training images' latents where it is farther from it than half of
              them, or than 9 of 10
"""

import sys
from pathlib import Path

import torch
from hydra.utils import instantiate
from torch.nn import functional as F

from adlight.detector import Detector
from adlight.features.cache import images_of
from adlight.gan.terms import fit_whitening, unit_differences, whitened_distance
from adlight.metrics.image import auroc
from adlight.runs.folder import RunFolder

BATCH = 256
SUMS = [("cosine, critic", other) for other in ("cosine, encoder", "whitened, critic", "nearest, critic")]


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
        return found


def compare(normal, anomalous):
    label = torch.cat([torch.zeros(len(normal)), torch.ones(len(anomalous))]).long()
    return float(auroc(torch.cat([normal, anomalous]), label))


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    for run in map(Path, sys.argv[1:]):
        config = RunFolder(run).config().dataset
        normal, classes = read(config, "val")
        _, defects = read(config, "val", "defects")
        test = read(config, "test")
        scores = Scores(Detector.load(run).module, read(config, "train")[0])
        sets = [scores(images) for images in (normal, classes, defects, *test)]
        reference = dict(sets[0])
        for names in SUMS:  # of terms that are standardized by held-out normals, as in the detector's mixture
            for found in sets:
                terms = [(found[name] - reference[name].mean()) / reference[name].std() for name in names]
                found[" + ".join(names)] = sum(terms)
        print(f"{run}\n| score | classes | defects | test |\n|---|--:|--:|--:|")
        for name in sets[0]:
            a, b, c, d, e = (found[name] for found in sets)
            print(f"| {name} | {compare(a, b):.4f} | {compare(a, c):.4f} | {compare(d, e):.4f} |")


if __name__ == "__main__":
    main()
