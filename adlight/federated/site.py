"""A site's part: its images stay here, weights and numbers leave.

Between rounds a site keeps its optimizer's state, and the learning rate runs over all rounds together: a federation of
one site is an ordinary training, to the last digit.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import pytorch_lightning as pl
import torch

from adlight.cli.errors import describe, explain, filter_warnings
from adlight.cli.job import finish_wandb
from adlight.data.datamodule import AnomalyDataModule
from adlight.detection.module import AnomalyModule
from adlight.federated.callbacks import LoadAveragedWeights, StopAfterRound
from adlight.federated.rounds import Place, Reply, Request
from adlight.federated.weights import Weights, check_model, set_shared_weights, shared_weights
from adlight.runs import provenance
from adlight.runs.checkpoints import BestAndLast, save, trained_epochs
from adlight.runs.federation import OBJECTIVE
from adlight.runs.files import append_traceback
from adlight.runs.folder import RunFolder
from adlight.runs.log import copy_output
from adlight.runs.sites import read_site_config, write_site_config
from adlight.runs.training import check_data
from adlight.runs.weights import load_weights
from adlight.train import build, check, make_trainer, test
from adlight.types import UserError


def handle_request(request: Request, place: Place) -> Reply:
    """Do what the server asks, and say in one line why it could not be done."""
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
    """One site in its run folder, opened anew for every request: what lasts lies there.

    Args:
        run: the folder.
        settings: those of the request.
    """

    def __init__(self, run: RunFolder, settings: Mapping[str, Any]) -> None:
        self.run, self.settings = run, settings

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Hold the folder, and copy what is printed into its log."""
        with ExitStack() as stack:
            stack.enter_context(self.run.lock(wait=False))
            stack.enter_context(copy_output(self.run.log))
            stack.enter_context(finish_wandb())
            yield

    def begin(self, place: Place) -> tuple[dict[str, Any], Weights]:
        """Check settings and images, and begin the run or go on with it. -> what they are, and the first weights."""
        config = self.config = write_site_config(self.run, self.settings, place.number, place.root, place.accelerator)
        data, module, trainer = build(config)
        check(config, trainer)
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
        """Train a round's epochs from averaged weights. -> the loss, and the weights.

        What an interrupted round has done already is not done again.
        """
        data, module, observers = self._open()
        last = self.settings["round"] * self.settings["epochs"]
        first, done = last - self.settings["epochs"], self._epochs()
        if not first <= done <= last:
            raise UserError(
                f"{self.run} has {done} epochs, but this round is of epochs {first} to {last}: its checkpoint or "
                "the server's is older than the other; begin a new federation"
            )
        loss, path = None, self.run.last_checkpoint if done else None
        if path is not None:
            load_weights(module, path)  # makes room for what was fitted
        if done < last:
            given = [LoadAveragedWeights(weights)] if done == first else []
            callbacks = [*observers.callbacks, *given, StopAfterRound(last), BestAndLast(self.run.last_checkpoint)]  # type: ignore[attr-defined]
            trainer = make_trainer(self.config, callbacks, observers.loggers, limit_val_batches=0)
            trainer.fit(module, data, ckpt_path=path, weights_only=True)
            found = trainer.callback_metrics.get("train/loss")
            loss = None if found is None else float(found)
        return {"loss": loss}, shared_weights(module)

    def measure(self, weights: Weights) -> dict[str, Any]:
        """Compare held-out normals with synthetic defects by averaged weights; test them too if asked for."""
        data, module, observers = self._open(weights)
        trainer = make_trainer(self.config, [], [])
        value = trainer.validate(module, data, verbose=False)[0].get(OBJECTIVE)
        values: dict[str, Any] = {OBJECTIVE: value, "categories": len(data.categories)}
        if self.settings["test"]:
            trainer.test(module, data, verbose=False)
            assert module.results is not None
            values["auroc"] = {name: one["auroc"] for name, one in module.results.categories.items() if "auroc" in one}
        if value is not None:
            for logger in observers.loggers:
                logger.log_metrics({OBJECTIVE: value, "epoch": self._epochs() - 1}, self._state()["global_step"])
                logger.save()
        return values

    def finish(self, weights: Weights) -> dict[str, Any]:
        """Calibrate averaged weights on the site's own normal images, keep them as the run's best, and test them."""
        data, module, observers = self._open(weights)
        trainer = make_trainer(self.config, [], [], inference_mode=False)  # the test loads what is fitted here
        found = trainer.validate(module, data, verbose=False)[0]
        save(trainer, self.run.best_checkpoint, weights_only=True)
        note, seconds = {"id": self.settings["federation"], "round": self.settings["round"]}, self._seconds()
        metadata = provenance.describe(self.config.seed, self.settings["command"]) | {"federation": note}
        metadata |= {"epochs": self._epochs(), "seconds": seconds, "validation": {OBJECTIVE: found.get(OBJECTIVE)}}
        metrics = test(self.run, self.run.best_checkpoint, observers, module, data, metadata)
        shown = {name: metrics[name] for name in ("auroc", "pixel_auroc", "aupro") if name in metrics}
        return {"metrics": shown, "folder": str(self.run)}

    def _open(self, weights: Weights | None = None) -> tuple[AnomalyDataModule, AnomalyModule, pl.Trainer]:
        """Build what the run's config describes; with averaged weights, a trained site's detector that has them."""
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

    def _seconds(self) -> float:
        kept = self._state()["callbacks"][BestAndLast(self.run.last_checkpoint).state_key]
        return round(kept["seconds"], 1)
