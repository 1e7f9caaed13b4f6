"""Callbacks that turn an ordinary training into one round: its initial weights, and its end."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from adlight.detection.module import AnomalyModule
from adlight.federated.weights import Weights, set_shared_weights


class LoadAveragedWeights(Callback):
    """Replaces the site's weights, restored from its checkpoint, by the averaged ones.

    Args:
        weights: Averaged weights.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Load the averaged weights."""
        assert isinstance(pl_module, AnomalyModule)
        set_shared_weights(pl_module, self.weights)


class StopAfterRound(Callback):
    """Ends a training after a round's epochs; `max_epochs`, which sets the learning rate schedule, covers all rounds.

    Args:
        epochs: Number of epochs in all rounds up to and including this one.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop after the round's last epoch."""
        trainer.should_stop = trainer.should_stop or trainer.current_epoch + 1 >= self.epochs
