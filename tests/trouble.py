"""Callbacks that break, hold or stop a training, for commands in processes of their own."""

import os
import time
from pathlib import Path

import pytorch_lightning as pl


class Trouble(pl.Callback):
    """Breaks a training in its second epoch, or holds it until there is a file, as the environment says."""

    def on_train_batch_end(self, trainer, *_):
        trouble, _, where = os.environ.get("ADLIGHT_TEST_TROUBLE", "").partition(" ")
        if trainer.current_epoch == 1 and trouble == "break" and where == str(trainer.global_rank):
            raise ZeroDivisionError("nothing left to divide by")
        if trainer.current_epoch == 1 and trouble == "hold" and not (where and Path(where).exists()):
            time.sleep(120)


class Bug(pl.Callback):
    """Has a bug in its constructor."""

    def __init__(self):
        self.number = self.add_one(None)

    def add_one(self, number):
        return number + 1
