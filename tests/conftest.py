"""The command line inside this process, as a new one costs seconds; and one tiny run that many tests look at."""

import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from makers import fake_mnist, fake_mvtec
from processes import call

# processes of the tests are forked from a server that has imported once what takes seconds, and computed nothing
multiprocessing.get_context("forkserver").set_forkserver_preload(
    ["adlight.data.datamodule", "adlight.detection.module"]
)
os.environ["ADLIGHT_TRUST"] = "trouble,gan.tiny"  # the tests' own callbacks, in the configs of runs that are resumed
os.environ["COLUMNS"] = "160"  # pytest's own processes have narrow terminals, in which tables leave columns out
torch.set_num_threads(1)  # threads cost more than they bring on tensors this small, above all on a busy machine

# 4 patches, about 80,000 parameters, 3 steps an epoch: a run takes about a second
TINY = [
    *("model=mae_small", "dataset=mvtec", "dataset.root=data", "trainer=cpu", "trainer.max_epochs=2"),
    *("dataset.image_size=32", "dataset.batch_size=4"),
    *(f"model.network.{part}_{key}" for part in ("encoder", "decoder") for key in ("width=32", "heads=2", "depth=1")),
]

# 8 x 8 pixels, 18 training images of a digit: 2 epochs of the GAN and 2 of its encoder, 3 steps each
TINY_GAN = [
    *("model=gan", "dataset=mnist", "dataset.root=mnist", "dataset.image_size=8", "dataset.batch_size=6"),
    *("trainer=cpu", "trainer.max_epochs=2", "model.encoder_epochs=2", "model.gan.n_critic=2"),
    *(f"model.{part}=4" for part in ("gan.generator.latent", "gan.generator.ngf", "gan.critic.ndf", "encoder.ndf")),
    *("callbacks.samples.count=4", "dataset.test_limit=20"),
]


class CommandLine:
    """`adlight <name> <words>` in a folder, without a new process.

    Attributes:
        folder: the current folder of the commands; `data` in it is a small set of two categories, `mnist` of digits.
        tiny: settings of a training that takes a second; `quick` leaves out its pictures too.
        gan: likewise, of a GAN.
    """

    def __init__(self, folder):
        self.folder, self.tiny = folder, TINY
        self.quick, self.gan = [*TINY, "~callbacks.panels", "~callbacks.gallery"], TINY_GAN
        fake_mvtec(folder / "data")
        fake_mnist(folder / "mnist", train=200, test=60, noise=200)

    def __call__(self, name, *words):
        return call(self.folder, name, *words)

    def train(self, *words):
        """Train where nothing may go wrong. -> the run's folder."""
        outcome = self("train", *words)
        assert outcome.code == 0, outcome.err
        line = next(line for line in outcome.out.splitlines() if line.startswith("run folder: "))
        return Path(line.removeprefix("run folder: "))

    def evaluate(self, run, *words):
        """Evaluate where nothing may go wrong. -> the evaluation's folder."""
        before = set((run / "evaluations").glob("*"))
        outcome = self("evaluate", f"run={run}", *words)
        assert outcome.code == 0, outcome.err
        (folder,) = set((run / "evaluations").glob("*")) - before
        return folder


@pytest.fixture(scope="session")
def adlight(tmp_path_factory):
    """The command line, in a folder that all tests share."""
    return CommandLine(tmp_path_factory.mktemp("adlight"))


@pytest.fixture(scope="session")
def tiny_run(adlight):
    """A complete run, to be looked at and evaluated but not changed: its folder and what it printed."""
    outcome = adlight("train", *adlight.tiny, "hydra.run.dir=runs/tiny")
    assert outcome.code == 0, outcome.err
    return adlight.folder / "runs" / "tiny", outcome.out


class PlainDistance(torch.nn.Module):
    """Stands in for LPIPS, whose weights are not on every machine."""

    def __init__(self, **settings):
        super().__init__()

    def forward(self, x, y):
        return (x - y).square().mean(1, keepdim=True)


@pytest.fixture
def in_bands(monkeypatch):
    """Returns a function after whose call all images count as large: arrays in files, read by bands of a few pixels."""
    from adlight.data import arrays

    def begin(pixels=7):
        monkeypatch.setattr(arrays, "LARGEST", 0)
        monkeypatch.setattr(arrays, "BAND", pixels)

    return begin


@pytest.fixture
def no_alexnet(monkeypatch):
    """LPIPS without AlexNet."""
    monkeypatch.setattr("lpips.LPIPS", PlainDistance)


@pytest.fixture
def forbid(monkeypatch):
    """Makes a folder unreadable, whoever runs the tests."""
    forbidden, scandir, listdir = set(), os.scandir, os.listdir

    def guard(call):
        def read(path="."):
            if not isinstance(path, int) and os.fspath(path) in forbidden:
                raise PermissionError(13, "Permission denied", os.fspath(path))
            return call(path)

        return read

    monkeypatch.setattr(os, "scandir", guard(scandir))
    monkeypatch.setattr(os, "listdir", guard(listdir))
    return lambda path: forbidden.add(str(path))
