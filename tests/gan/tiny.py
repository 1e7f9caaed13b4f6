"""A GAN of 8 x 8 pixels that trains in a second, stage by stage as `adlight.train` does it."""

import signal
from functools import partial

import pytorch_lightning as pl
import torch

from adlight.data.datamodule import AnomalyDataModule
from adlight.data.mvtec import MVTecAD
from adlight.gan.encoder import GANDetector
from adlight.gan.module import AdversarialModule
from adlight.gan.networks import Critic, Encoder, Generator
from adlight.gan.objectives import WGANGP
from adlight.gan.scorer import InversionScorer
from adlight.runs.checkpoints import BestAndLast

SIZE, LATENT = 8, 6
GAN_EPOCHS, ENCODER_EPOCHS, BATCHES = 6, 2, 2  # 20 images, 4 of them held out; batches of 8
ADAM = partial(torch.optim.Adam, lr=1e-2, betas=(0.5, 0.9))


def make_gan(seed=0, objective=None, optimizer=ADAM, **settings):
    torch.manual_seed(seed)
    networks = Generator(SIZE, 1, LATENT, 4), Critic(SIZE, 1, 4)
    return AdversarialModule(*networks, objective or WGANGP(), optimizer, optimizer, **settings)


def make(gan=None, encoder=True, optimizer=ADAM, scorer=None, **settings):
    gan = gan or make_gan()
    encoder = Encoder(SIZE, 1, LATENT, 4) if encoder else None
    settings = {"encoder_epochs": ENCODER_EPOCHS} | settings
    return GANDetector(gan, encoder, scorer or InversionScorer(), optimizer, **settings)


def make_data(root, **settings):
    sizes = dict(image_size=SIZE, channels=1, batch_size=8, eval_batch_size=3, val_fraction=0.2, num_workers=0)
    return AnomalyDataModule(MVTecAD, root=root, **(sizes | settings))


def make_trainer(**settings):
    plain = dict(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    plain |= dict(use_distributed_sampler=False, num_sanity_val_steps=0)
    return pl.Trainer(**(plain | {"enable_checkpointing": False} | settings))


def fit(stage, data, folder, epochs=None, ckpt=None, callbacks=(), **settings):
    """Fit one stage; its checkpoint is `<its class>.ckpt` in the folder."""
    pl.seed_everything(0, verbose=False)
    keep = BestAndLast(folder / f"{type(stage).__name__}.ckpt", folder / "best.ckpt")
    if epochs is None:
        epochs = stage.num_epochs(GAN_EPOCHS, lambda: BATCHES)
    settings |= {"enable_checkpointing": True, "callbacks": [keep, *callbacks], "max_epochs": epochs}
    trainer = make_trainer(**settings)
    trainer.fit(stage, data, ckpt_path=ckpt, weights_only=True)
    data.first_epoch += trainer.current_epoch
    return trainer


def snapshot(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


class Watch(pl.Callback):
    """Notes what each batch is and does."""

    def __init__(self):
        self.images, self.weights, self.rates, self.left, self.metrics = [], [], [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.images.append(batch["image"].clone())
        self.weights = self.weights or [snapshot(module)]

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.weights.append(snapshot(module))
        self.rates.append([group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups])
        self.left += [name for name, p in module.named_parameters() if p.grad is not None]

    def on_train_epoch_end(self, trainer, module):
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def moved(self, prefix):
        """Which batches changed a network."""
        pairs = enumerate(zip(self.weights, self.weights[1:], strict=False))
        return [
            i for i, (old, new) in pairs if any(not torch.equal(new[k], old[k]) for k in new if k.startswith(prefix))
        ]


class CtrlC(pl.Callback):
    """Stops a run of the command line in the stage and epoch that a test names."""

    place = None

    def on_train_batch_end(self, trainer, module, *_):
        if (type(module).__name__, trainer.current_epoch) == CtrlC.place:
            raise KeyboardInterrupt


def stop_and_resume(adlight, place, words, folder):
    """Stop a training by Ctrl-C at a place (stage, epoch), and resume it. -> the run's folder."""
    before = signal.getsignal(signal.SIGINT)
    try:
        CtrlC.place = place
        outcome = adlight("train", *words, f"hydra.run.dir={folder}")
        assert outcome.code == 130, outcome.err
    finally:
        CtrlC.place = None
        signal.signal(signal.SIGINT, before)
    outcome = adlight("train", f"resume={folder}")
    assert outcome.code == 0, outcome.err
    return adlight.folder / folder
