"""A site's part of a federation: images stay here, only weights and numbers leave.

A site keeps the optimizer's state between rounds, and the learning rate schedule covers all rounds, so a federation of
a single site is identical to an ordinary training.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from adlight.cli.errors import describe, explain, filter_warnings
from adlight.cli.job import finish_wandb
from adlight.data.datamodule import AnomalyDataModule
from adlight.detection.module import AnomalyModule
from adlight.federated.rounds import Place, Reply, Request
from adlight.federated.weights import Weights, check_model, set_shared_weights, shared_weights
from adlight.runs import provenance
from adlight.runs.checkpoints import BestAndLast, save, trained_epochs
from adlight.runs.federation import read_site_config, write_site_config
from adlight.runs.files import append_traceback
from adlight.runs.folder import RunFolder
from adlight.runs.log import copy_output
from adlight.runs.tables import OBJECTIVE
from adlight.runs.training import check_data, check_trainer
from adlight.runs.weights import load_weights
from adlight.train import build, make_trainer, test
from adlight.types import UserError


def handle_request(request: Request, place: Place) -> Reply:
    """Handle a request of the server; if it fails, the reply's `error` describes why in one line."""
    site = Site(RunFolder(place.folder), request.settings)
    try:
        filter_warnings()
        with site.at_work():
            if request.kind == "begin":
                return Reply(place.number, *site.begin(place))
            if request.kind == "train":
                return Reply(place.number, *site.train(request.weights))
            values = site.measure(request.weights) if request.kind == "measure" else site.finish(request.weights)
            return Reply(place.number, values, {})
    except Exception as error:
        line = describe(error)
        if explain(error) is None and place.folder.is_dir():
            append_traceback(site.run.log, error)
            line += f" (traceback in {site.run.log})"
        return Reply(place.number, {}, {}, line)


class Site:
    """A site, created anew for every request with the request's settings; all state is in its run folder."""

    def __init__(self, run: RunFolder, settings: Mapping[str, Any]) -> None:
        self.run, self.settings = run, settings

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Lock the run folder, and copy the output to its log."""
        with self.run.lock(wait=False), copy_output(self.run.log), finish_wandb():
            yield

    def begin(self, place: Place) -> tuple[dict[str, Any], Weights]:
        """Check settings and images, and begin or continue the run. -> values for the server, and initial weights."""
        config = self.config = write_site_config(self.run, self.settings, place.number, place.root, place.accelerator)
        data, module, trainer = build(config)
        check_trainer(config, trainer)
        check_model(module)
        check_data(data, module.calibration, self.run)
        metadata = provenance.describe(config.seed, self.settings["command"])
        self.run.begin(metadata | {"federation": self.settings["federation"]})
        provenance.log_config(trainer, config)
        data.setup("fit")
        frame = {name: str(config.dataset[name]) for name in ("image_size", "resize", "keep_shape", "channels")}
        values = {"images": len(data.datasets["train"]), "frame": " ".join(f"{k}={v}" for k, v in frame.items())}
        return values, shared_weights(module)

    def train(self, weights: Weights) -> tuple[dict[str, Any], Weights]:
        """Train the epochs of a round, starting from averaged weights. -> the loss, and the trained weights.

        Epochs that an interrupted round has finished are not repeated.
        """
        data, module, observers = self._open()
        last = self.settings["round"] * self.settings["epochs"]
        first, done = last - self.settings["epochs"], self._epochs()
        if not first <= done <= last:
            raise UserError(
                f"{self.run} has {done} epochs, but this round covers epochs {first} to {last}: the site's checkpoint "
                "and the server's are of different rounds; begin a new federation"
            )
        loss, path = None, self.run.last_checkpoint if done else None
        if path is not None:
            load_weights(module, path)  # allocates the fitted buffers
        if done < last:
            initial = [LoadAveragedWeights(weights)] if done == first else []
            callbacks = [*observers.callbacks, *initial, StopAfterRound(last), BestAndLast(self.run.last_checkpoint)]  # type: ignore[attr-defined]
            trainer = make_trainer(self.config, callbacks, observers.loggers, limit_val_batches=0)
            trainer.fit(module, data, ckpt_path=path, weights_only=True)
            logged = trainer.callback_metrics.get("train/loss")
            loss = None if logged is None else float(logged)
        return {"loss": loss}, shared_weights(module)

    def measure(self, weights: Weights) -> dict[str, Any]:
        """Validate averaged weights on held-out normals and synthetic anomalies, and test them if requested."""
        data, module, observers = self._open(weights)
        trainer = make_trainer(self.config, [], [])
        value = trainer.validate(module, data, verbose=False)[0].get(OBJECTIVE)
        values: dict[str, Any] = {OBJECTIVE: value, "categories": len(data.categories)}
        if self.settings["test"]:
            trainer.test(module, data, verbose=False)
            assert module.results is not None
            tested = module.results.categories
            values["auroc"] = {name: metrics["auroc"] for name, metrics in tested.items() if "auroc" in metrics}
        if value is not None:
            for logger in observers.loggers:
                logger.log_metrics({OBJECTIVE: value, "epoch": self._epochs() - 1}, self._state()["global_step"])
                logger.save()
        return values

    def finish(self, weights: Weights) -> dict[str, Any]:
        """Calibrate averaged weights on the site's normal images, save them as the run's best, and test them."""
        data, module, observers = self._open(weights)
        trainer = make_trainer(self.config, [], [], inference_mode=False)  # the test loads the buffers fitted here
        validation = trainer.validate(module, data, verbose=False)[0]
        save(trainer, self.run.best_checkpoint, weights_only=True)
        metadata = provenance.describe(self.config.seed, self.settings["command"])
        metadata["federation"] = {"id": self.settings["federation"], "round": self.settings["round"]}
        seconds = self._state()["callbacks"][BestAndLast(self.run.last_checkpoint).state_key]["seconds"]
        metadata |= {"epochs": self._epochs(), "seconds": round(seconds, 1)}
        metadata["validation"] = {OBJECTIVE: validation.get(OBJECTIVE)}
        metrics = test(self.run, self.run.best_checkpoint, observers, module, data, metadata)
        shown = {name: metrics[name] for name in ("auroc", "pixel_auroc", "aupro") if name in metrics}
        return {"metrics": shown, "folder": str(self.run)}

    def _open(self, weights: Weights | None = None) -> tuple[AnomalyDataModule, AnomalyModule, pl.Trainer]:
        """Build the run from its config; with `weights`, load the last checkpoint and replace its shared weights."""
        self.config = read_site_config(self.run, self.settings["federation"])
        data, module, trainer = build(self.config)
        if weights is not None:
            load_weights(module, self.run.last_checkpoint)
            set_shared_weights(module, weights)
        return data, module, trainer

    def _epochs(self) -> int:
        path = self.run.last_checkpoint
        return trained_epochs(path) if path.exists() else 0

    def _state(self) -> dict[str, Any]:
        return torch.load(self.run.last_checkpoint, map_location="cpu", weights_only=True, mmap=True)


class LoadAveragedWeights(Callback):
    """Replaces the site's weights, restored from its checkpoint, by averaged ones."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Load the averaged weights."""
        assert isinstance(pl_module, AnomalyModule)
        set_shared_weights(pl_module, self.weights)


class StopAfterRound(Callback):
    """Ends a training after the round's last epoch; `max_epochs` covers all rounds, for the learning rate schedule."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop after the round's last epoch."""
        trainer.should_stop = trainer.should_stop or trainer.current_epoch + 1 >= self.epochs
