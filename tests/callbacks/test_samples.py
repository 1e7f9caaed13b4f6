from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger

from adlight.callbacks.samples import Samples
from adlight.gan.module import AdversarialModule
from adlight.gan.networks import Critic, Generator
from adlight.gan.objectives import WGANGP


@pytest.fixture
def module():
    torch.manual_seed(0)
    networks = Generator(8, 1, 4, 2), Critic(8, 1, 2)
    return AdversarialModule(*networks, WGANGP(), *[partial(torch.optim.Adam, lr=1e-3)] * 2, ema=0.5)


def at(epoch, zero=True, loggers=()):
    return SimpleNamespace(
        max_epochs=7, current_epoch=epoch - 1, global_step=epoch, is_global_zero=zero, loggers=list(loggers)
    )


def test_every_few_epochs_and_at_the_end_of_the_gan(module, tmp_path):
    callback = Samples(str(tmp_path / "new"), every=3, count=4)
    for epoch in range(1, 8):
        callback.on_train_epoch_end(at(epoch), module)
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == [f"epoch-{n:04d}.png" for n in (3, 6, 7)]


def test_the_picture_shows_the_generator_that_scores(module, tmp_path):
    with torch.no_grad():
        module.generator.project.weight.mul_(3)  # the one in training moves on; the average is what scores
    Samples(str(tmp_path), every=1, count=4).on_train_epoch_end(at(1), module)
    picture = np.asarray(Image.open(tmp_path / "epoch-0001.png"))
    assert picture.shape == (2 * 10 + 2, 2 * 10 + 2, 3)  # 2 x 2 images with a frame of 2 pixels
    z = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first = module.ema.network(z)[0, 0]
    np.testing.assert_allclose(picture[2:10, 2:10, 0] / 255, first.numpy(), atol=1 / 255)
    assert torch.equal(module.sample(4), module.sample(4))


def test_other_modules_and_processes_draw_nothing(module, tmp_path):
    callback = Samples(str(tmp_path), every=1)
    callback.on_train_epoch_end(at(1, zero=False), module)
    callback.on_train_epoch_end(at(1), torch.nn.Linear(1, 1))
    assert not list(tmp_path.iterdir())


def test_tensorboard_gets_the_grid(module, tmp_path):
    found = []
    logger = TensorBoardLogger(str(tmp_path))
    logger._experiment = SimpleNamespace(add_image=lambda name, picture, *_, **__: found.append((name, picture.shape)))
    Samples(str(tmp_path), every=1, count=9).on_train_epoch_end(at(2, loggers=[logger]), module)
    assert found == [("samples", (32, 32, 3))]
