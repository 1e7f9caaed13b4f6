"""A GAN that converges in seconds: it can show, and find again, what it was trained on and nothing else.

The images are 8 x 8 pixels of one soft blob, which two numbers describe: where it is. So it is known what a sample
should look like, as with no real data set. The anomalies are no brighter and no darker than the normal images.
"""

from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gan.tiny import make_trainer
from PIL import Image

from adlight.data.datamodule import AnomalyDataModule
from adlight.data.source import Source
from adlight.gan.encoder import GANDetector
from adlight.gan.module import AdversarialModule
from adlight.gan.networks import Critic, Encoder, Generator
from adlight.gan.objectives import WGANGP
from adlight.gan.scorer import InversionScorer
from adlight.metrics.image import auroc
from adlight.types import Record

SIZE, LATENT, WIDTH = 8, 2, 16
TRAIN, HELD_OUT, TEST = 1152, 128, 32  # TEST of each kind
GAN_EPOCHS, ENCODER_EPOCHS = 25, 8  # of 18 batches
KINDS = ("pair", "bar", "cross")


def blob(x, y, wide=1.3, high=1.3):
    """Blobs at x, y (N,), of brightness 1 in their middle. -> (N, 1, SIZE, SIZE)."""
    pixel = torch.arange(float(SIZE))
    right, down = (pixel - x[:, None]) / wide, (pixel - y[:, None]) / high  # (N, SIZE)
    return torch.exp(-(down.square()[:, :, None] + right.square()[:, None]) / 2)[:, None]


def drawn(kind, count, seed):
    """Blobs at random places, or as many images of another kind, as bright as those. -> (count, 1, SIZE, SIZE)."""
    x, y = 2 + 3 * torch.rand(2, count, generator=torch.Generator().manual_seed(seed))
    normal, bar, shift = blob(x, y), blob(x, y, 2.6, 0.6), (x - 3.5) / 3
    if kind == "good":
        return normal
    pair = blob(1.5 + shift, 1.5 - shift) + blob(5.5 + shift, 5.5 - shift)  # in opposite corners
    odd = {"pair": pair, "bar": bar, "cross": bar + blob(x, y, 0.6, 2.6)}[kind]
    return (odd * normal.sum((2, 3), keepdim=True) / odd.sum((2, 3), keepdim=True)).clamp(max=1)


class Blobs(Source):
    """Blobs, kept in memory; tested on others and on what is no blob."""

    def __init__(self):
        kinds = [("good", TRAIN + HELD_OUT + TEST), *((kind, TEST) for kind in KINDS)]
        self.images = {kind: drawn(kind, count, seed) for seed, (kind, count) in enumerate(kinds)}

    def train(self):
        return [Record(f"good/{k}", "blobs") for k in range(TRAIN + HELD_OUT)]

    def test(self):
        good = [Record(f"good/{TRAIN + HELD_OUT + k}", "blobs") for k in range(TEST)]
        return good + [Record(f"{kind}/{k}", "blobs", kind, 1) for kind in KINDS for k in range(TEST)]

    def read(self, record):
        kind, k = record.path.split("/")
        return Image.fromarray((255 * self.images[kind][int(k), 0]).round().byte().numpy())


class Curve(pl.Callback):
    """Notes the critic's estimate of the distance, epoch by epoch."""

    def __init__(self):
        self.wasserstein = []

    def on_train_epoch_end(self, trainer, module):
        self.wasserstein.append(float(trainer.callback_metrics["train/wasserstein"]))


def untrained():
    torch.manual_seed(0)
    networks = Generator(SIZE, 1, LATENT, WIDTH), Critic(SIZE, 1, WIDTH)
    adam = partial(torch.optim.Adam, lr=5e-3, betas=(0.5, 0.9))
    gan = AdversarialModule(*networks, WGANGP(), adam, adam, n_critic=3, ema=0.0)
    return GANDetector(gan, Encoder(SIZE, 1, LATENT, WIDTH), InversionScorer(), adam)


@pytest.fixture(scope="module")
def trained():
    """The module after both stages, its data, and the curve of its distance."""
    sizes = dict(image_size=SIZE, channels=1, batch_size=64, eval_batch_size=64, num_workers=0)
    data = AnomalyDataModule(Blobs, val_fraction=HELD_OUT / (TRAIN + HELD_OUT), **sizes)
    module, curve = untrained(), Curve()
    make_trainer(max_epochs=GAN_EPOCHS, callbacks=[curve]).fit(module.gan, data)
    assert int(module.gan.generator_steps) == GAN_EPOCHS * 18 // 3
    data.first_epoch = GAN_EPOCHS
    make_trainer(max_epochs=ENCODER_EPOCHS, check_val_every_n_epoch=ENCODER_EPOCHS).fit(module, data)
    data.setup("test")
    return module, data, curve.wasserstein


def images(data, split):
    return data.datasets[split].images.float() / 255


def error(one, other):
    return (one - other).square().flatten(1).mean(1)  # (N,)


def spread(data):
    """Variance of the training images: the error of the best constant answer."""
    train = images(data, "train")
    return error(train, train.mean(0)).mean()


def generated(module, count):
    with torch.no_grad():
        return module.networks.generator(torch.randn(count, LATENT, generator=torch.Generator().manual_seed(1)))


def nearest(sample):
    """Of each image the nearest blob: where it is (N, 2), and how far (N,)."""
    family = torch.cartesian_prod(*[torch.linspace(1.5, 5.5, 41)] * 2)  # (P, 2), a little beyond the training's
    distance = torch.cdist(sample.flatten(1), blob(*family.T).flatten(1)).square() / SIZE**2  # (N, P)
    return family[distance.argmin(1)], distance.amin(1)


def test_the_distance_falls(trained):
    curve = trained[2]
    assert np.mean(curve[-3:]) < max(curve) / 4


def test_samples_are_blobs_everywhere(trained):
    module, data, _ = trained
    place, missed = nearest(generated(module, 256))
    assert missed.mean() < 0.25 * spread(data)
    _, before = nearest(generated(untrained(), 256))
    assert missed.mean() < 0.1 * before.mean()
    # U[2, 5] has mean 3.5 and deviation 0.87; a generator that shows one place only has none
    assert ((place.mean(0) - 3.5).abs() < 0.5).all() and (place.std(0) > 0.55).all()


def test_a_known_latent_s_image_is_found(trained):
    module, data, _ = trained
    wanted = generated(module, 32)
    assert error(wanted, wanted.mean(0)).mean() > 0.5 * spread(data)  # they differ
    scorer = InversionScorer("gradient", steps=200, lr=0.1, latent_penalty=0, restarts=4)
    with torch.no_grad():
        found = module.networks.generator(scorer.find_latents(module.networks, wanted))
    assert (error(found, wanted) < 0.01 * spread(data)).all()


def test_the_encoder_reconstructs_held_out_blobs(trained):
    module, data, _ = trained
    held_out, constant = images(data, "test")[:TEST], images(data, "train").mean(0)
    search = InversionScorer("encoder+gradient", steps=30, latent_penalty=0)
    with torch.no_grad():
        made, refined = (
            module.networks.generator(scorer.find_latents(module.networks, held_out))
            for scorer in (InversionScorer("encoder"), search)
        )
    missed = error(made, held_out)
    assert missed.mean() < 0.3 * error(held_out, constant).mean()
    assert (error(refined, held_out) <= missed + 1e-6).all()  # starts there, keeps the best


@pytest.mark.parametrize("method", ["encoder", "gradient", "encoder+gradient"])
@pytest.mark.parametrize("term", ["feature", "residual"])
def test_what_is_no_blob_scores_higher(trained, monkeypatch, method, term):
    module, data, _ = trained
    restarts = 4 if method == "gradient" else 1
    scorer = InversionScorer(method, weights={term: 1.0}, steps=60, lr=0.1, restarts=restarts)
    monkeypatch.setattr(module, "scorer", scorer)
    make_trainer().test(module, data, verbose=False)
    found = module.results
    assert found.mean["auroc"] > 0.95
    assert all(found.defects["blobs"][kind]["auroc"] > 0.9 for kind in KINDS)


def test_simpler_scores_do_not_tell(trained):
    """Otherwise the test above would be easy: neither brightness nor the distance from the mean image will do."""
    data = trained[1]
    image, labels = images(data, "test"), torch.tensor([0] * TEST + [1] * TEST * len(KINDS))
    mean = images(data, "train").mean(0)
    assert auroc(image.flatten(1).mean(1), labels) < 0.7
    assert auroc(error(image, mean), labels) < 0.9


def test_no_gradient_is_left_in_the_networks(trained):
    module, data, _ = trained
    image = images(data, "test")[::16]
    for method in ("gradient", "encoder+gradient"):
        InversionScorer(method, steps=10, kappa=0.1).terms(module.networks, image)
    assert all(p.grad is None for p in module.parameters())
