"""A callback that ends the process after its first training step: what `start.py` waits for."""

import os
from typing import Any

import pytorch_lightning as pl


class FirstStep(pl.Callback):
    def on_train_batch_end(self, *_: Any) -> None:
        os._exit(0)
