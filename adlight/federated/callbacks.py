"""What makes a round of an ordinary training: where it starts from, and where it ends."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from adlight.detection.module import AnomalyModule
from adlight.federated.weights import Weights, set_shared_weights


class LoadAveragedWeights(Callback):
    """Puts averaged weights in place of the site's own, which its checkpoint has brought back with the rest.

    Args:
        weights: averaged.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put them in."""
        assert isinstance(pl_module, AnomalyModule)
        set_shared_weights(pl_module, self.weights)


class StopAfterRound(Callback):
    """Ends a training after a round's epochs; the trainer's own length, by which the rate falls, is that of all rounds.

    Args:
        epochs: of all rounds so far.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End it."""
        trainer.should_stop = trainer.should_stop or trainer.current_epoch + 1 >= self.epochs
