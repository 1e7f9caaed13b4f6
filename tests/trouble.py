"""Callbacks that break, hold or stop a training, for commands in processes of their own; and what is none."""

import os
import time
from pathlib import Path

import pytorch_lightning as pl
import torch

from adlight.types import UserError


class Trouble(pl.Callback):
    """Breaks a training in its second epoch, or holds it until there is a file, as the environment says."""

    def on_train_batch_end(self, trainer, *_):
        trouble, _, where = os.environ.get("ADLIGHT_TEST_TROUBLE", "").partition(" ")
        if trainer.current_epoch == 1 and trouble == "break" and where == str(trainer.global_rank):
            raise ZeroDivisionError("nothing left to divide by")
        if trainer.current_epoch == 1 and trouble == "hold" and not (where and Path(where).exists()):
            time.sleep(120)


class Counter(pl.Callback):
    """Logs generator steps as a GAN does; its end is `well`, `badly` or `interrupted`."""

    def __init__(self, ends="well"):
        self.ends, self.steps = ends, 0

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.steps += 1
        pl_module.log("generator_steps", float(self.steps), on_step=False, on_epoch=True, reduce_fx="max")

    def on_train_epoch_end(self, trainer, pl_module):
        if self.ends != "well":
            raise UserError("told to fail") if self.ends == "badly" else KeyboardInterrupt


class Bug(pl.Callback):
    """Has a bug in its constructor."""

    def __init__(self):
        self.number = self.add_one(None)

    def add_one(self, number):
        return number + 1


def make_text(**settings):
    """Makes no callback."""
    return "text"


class NoWaiting(pl.Callback):
    """Makes what waits for a GPU in a training step an error, after the first epoch."""

    def on_train_batch_start(self, trainer, *_):
        torch.cuda.set_sync_debug_mode("error" if trainer.current_epoch else "default")

    def on_train_batch_end(self, *_):
        torch.cuda.set_sync_debug_mode("default")
