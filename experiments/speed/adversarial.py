"""Row `gan`: a WGAN-GP cycle of the module against a hand-written loop, and images per second of each inversion."""

import copy
import itertools
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytorch_lightning as pl
import torch
from timing import DEVICE, Row, alternate, composed_bare, ratios, row, seconds, wait
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from adlight.gan.inversion import Networks
from adlight.gan.networks import Critic, Encoder, Generator
from adlight.gan.objectives import WGANGP
from adlight.gan.scorer import InversionScorer
from adlight.train import build
from adlight.types import Batch

BATCH, CYCLES, REPEATS = 50, 2, 7


class PlainLoop:
    """Algorithm 1 of Gulrajani 2017 as one writes it down: real, fake and penalty one after the other, autograd."""

    def __init__(self, generator: Generator, critic: Critic) -> None:
        self.generator, self.critic = copy.deepcopy(generator).to(DEVICE), copy.deepcopy(critic).to(DEVICE)
        self.of_critic = torch.optim.Adam(self.critic.parameters(), 1e-4, (0.0, 0.9))
        self.of_generator = torch.optim.Adam(self.generator.parameters(), 1e-4, (0.0, 0.9))

    def penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        e = torch.rand(len(real), 1, 1, 1, device=real.device)
        between = (e * real + (1 - e) * fake).requires_grad_(True)
        score = self.critic(between)
        (gradient,) = torch.autograd.grad(score, between, torch.ones_like(score), create_graph=True, retain_graph=True)
        return ((gradient.flatten(1).norm(2, dim=1) - 1) ** 2).mean()

    def cycle(self, images: Iterator[Tensor]) -> None:
        for _ in range(5):
            real = next(images)
            self.of_critic.zero_grad()
            fake = self.generator(torch.randn(len(real), 128, device=DEVICE)).detach()
            loss = self.critic(fake).mean() - self.critic(real).mean() + 10 * self.penalty(real, fake)
            loss.backward()
            self.of_critic.step()
            loss.item()  # what such loops print
        self.of_generator.zero_grad()
        loss = -self.critic(self.generator(torch.randn(BATCH, 128, device=DEVICE))).mean()
        loss.backward()
        self.of_generator.step()


class Pauses(pl.Callback):
    """Lets the plain loop run after every few cycles of a training, and notes the seconds of both."""

    def __init__(self, plain: PlainLoop) -> None:
        self.plain, self.since = plain, 0.0
        self.module_times: list[float] = []
        self.plain_times: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, i: int) -> None:
        if trainer.fit_loop.total_batch_idx % (5 * CYCLES):
            return
        wait()
        if trainer.fit_loop.total_batch_idx:
            self.module_times.append(time.perf_counter() - self.since)
        images = itertools.cycle(batch["image"].split(BATCH))
        self.plain_times.append(seconds(lambda: [self.plain.cycle(images) for _ in range(CYCLES)]))
        self.since = time.perf_counter()


class Flops(TorchDispatchMode):
    """Counts as `FlopCounterMode` does, which cannot be in force while `autograd.grad` runs to a leaf."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if count := flop_registry.get(function._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def count_flops() -> list[Row]:
    """Convolutions and matrix products of one cycle, ours and the plain loop's: what their times can differ by."""
    plain, objective, draws = PlainLoop(Generator(), Critic()), WGANGP(), torch.Generator()
    generator, critic, real = plain.generator, plain.critic, torch.rand(BATCH, 1, 28, 28, device=DEVICE)
    with Flops() as theirs:
        plain.cycle(itertools.repeat(real))
    with Flops() as ours:  # what AdversarialModule.training_step computes
        for _ in range(5):
            with torch.no_grad():
                fake = generator(torch.randn(BATCH, 128, device=DEVICE))
            loss = objective.critic_loss(critic, real, fake, draws)["critic"]
            torch.autograd.grad(loss, list(critic.parameters()))
        loss = objective.generator_loss(critic, generator(torch.randn(BATCH, 128, device=DEVICE)))
        torch.autograd.grad(loss, list(generator.parameters()))
    return [row("gan", "hand-written loop / module, FLOPs of a cycle", [theirs.total / ours.total], "ratio")]


def measure_training() -> list[Row]:
    """`experiment=gan_thesis` on random images, by the Trainer and by hand, in turn."""
    with TemporaryDirectory() as folder:
        config = composed_bare(
            "experiment=gan_thesis", "trainer.precision=32-true", "trainer.max_epochs=1",
            f"trainer.limit_train_batches={5 * CYCLES * (REPEATS + 1) + 1}", f"dataset.root={folder}",
        )  # fmt: skip
        random_mnist(Path(folder), images=5000)
        data, module, trainer = build(config)
        pauses = Pauses(PlainLoop(module.gan.generator, module.gan.critic))
        trainer.callbacks.append(pauses)
        trainer.fit(module.gan, data)
    images = 5 * CYCLES * BATCH
    ours, plain = pauses.module_times[1:], pauses.plain_times[2:]  # the first turns warm up
    return [
        row("gan", "WGAN-GP, 28 pixels, batch 50, the module in the Trainer", [images / t for t in ours], "images/s"),
        row("gan", "the same, a hand-written loop", [images / t for t in plain], "images/s"),
        row("gan", "module / hand-written loop, images/s", ratios(plain, ours), "ratio", ">= 1.3"),
    ]


def random_mnist(root: Path, images: int) -> None:
    """Noise in MNIST's files: the time of a step does not depend on what is shown."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    draws = np.random.default_rng(0)
    for name, count in (("train", images), ("t10k", 10)):
        pixels = draws.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + pixels.tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + bytes(count))


def measure_scoring() -> list[Row]:
    """One batch of 256 random images through each inversion, untrained networks of the thesis's size."""
    networks = Networks(Generator(), Critic(), Encoder())
    for network in networks:
        network.to(DEVICE).eval().requires_grad_(False)
    image = torch.rand(256, 1, 28, 28, device=DEVICE)
    rows = []
    for method, steps, repeats in (("encoder", 1, 7), ("encoder+gradient", 20, 3), ("gradient", 500, 1)):
        scorer = InversionScorer(method, steps=steps)
        (times,) = alternate(lambda scorer=scorer: scorer.terms(networks, image), repeats=repeats, warmup=repeats > 1)
        what = f"scoring, batch 256: {method}" + (f", at most {steps} steps" if steps > 1 else "")
        rows.append(row("gan", what, [256 / t for t in times], "images/s"))
    return rows


def measure() -> list[Row]:
    """All of them."""
    return measure_training() + count_flops() + measure_scoring()
