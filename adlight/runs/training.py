"""The steps of a training between its config and its first epoch, in order."""

import functools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from adlight.runs.config import FRAME_KEYS, SPLIT_KEYS, check_same_split, instantiate_node
from adlight.runs.files import rank
from adlight.runs.folder import RunFolder
from adlight.runs.provenance import check_held_out
from adlight.runs.tables import write_trained
from adlight.runs.trust import check_places
from adlight.runs.weights import load_weights
from adlight.types import UserError

MAX_DEVICES = 16  # limit of devices per machine, unless it has more cores

if TYPE_CHECKING:  # torch takes seconds: not for --help
    import pytorch_lightning as pl

    from adlight.data.datamodule import AnomalyDataModule
    from adlight.detection.module import AnomalyModule
    from adlight.metrics.thresholds import Calibration


def resume_config(run: RunFolder, overrides: Sequence[str]) -> DictConfig:
    """Read a run's config and apply overrides; raise a UserError if they change the split or the seed."""
    config, saved = run.config(overrides), run.read_config()
    check_places(config, run.config_path, overrides)
    for key in ("seed", *(f"dataset.{name}" for name in SPLIT_KEYS)):
        now, before = OmegaConf.select(config, key), OmegaConf.select(saved, key)
        if now != before:
            raise UserError(
                f"{key} is {before} in {run} and cannot change to {now} on resume, as images held out so far would be "
                "trained on: leave it out, or train a new run"
            )
    return config


def prepare_config(config: DictConfig, run: RunFolder) -> None:
    """Check a new run's config and, if `keep_shape` is `auto`, choose the frame by the shapes of training images."""
    from adlight.data.frames import choose_frame  # takes time to import: not for --help
    from adlight.runs.checks import check_names, check_settings

    check_names(config)
    check_settings(config)
    if config.dataset.keep_shape != "auto":
        return
    requested: Any = OmegaConf.to_container(config.dataset)
    config.requested_frame = {name: requested[name] for name in FRAME_KEYS}
    config.dataset.keep_shape = False
    data = instantiate_node(config.dataset)
    is_tiled = config.dataset.get("tile") is not None  # tiles have one shape
    if not is_tiled and isinstance(config.dataset.image_size, int) and config.dataset.resize is None:
        with run.data_lock():
            data.prepare_data()
        chosen = choose_frame(data.source.sizes(), config.dataset.image_size)
        if chosen["image_size"] != config.dataset.image_size and rank() == 0:
            settings = " ".join(f"dataset.{name}={value}" for name, value in chosen.items())
            print(f"the training images are not square: {settings}", flush=True)
        config.dataset.update(chosen)
    if rank() == 0:
        run.write_config(config)


def check_data(data: "AnomalyDataModule", calibration: "Calibration", run: RunFolder) -> None:
    """Prepare and check all images of a run, and print notes about them.

    Raises:
        UserError: a file is damaged, there is nothing to test, a category would have no thresholds, or images that a
            resumed run was trained on would be held out.
    """
    from adlight.metrics.thresholds import GIVEN  # takes time to import: not for --help

    with run.data_lock():
        data.prepare_data()
    data.check()
    if run.can_resume:
        check_held_out(run, data)
    trained, tested = ({record.category for record in split} for split in (data.source.train(), data.source.test()))
    if calibration.per == "category" and calibration.of(None).source != GIVEN and tested - trained:
        raise UserError(
            f"{', '.join(sorted(tested - trained))}: tested, but without normal training images there are no "
            "thresholds: add some, or use the same thresholds for all categories by calibration.per=all"
        )
    for note in data.notes if rank() == 0 else ():
        print(f"data: {note}", flush=True)


def check_trainer(config: DictConfig, trainer: "pl.Trainer") -> None:
    """Raise a UserError for settings that would waste the training, or with which it cannot start here."""
    from adlight.detection.inference import SHORT, autocast_dtype

    strategy, precision = str(config.trainer.strategy), str(config.trainer.precision)
    if config.ckpt not in ("best", "last"):
        raise UserError(f"ckpt={config.ckpt}: a training tests its own best or last; adlight evaluate tests any other")
    if (least := trainer.min_epochs or 0) > (most := trainer.max_epochs or 0):
        raise UserError(f"trainer.min_epochs={least} is more than trainer.max_epochs={most}: lower it")
    if strategy.endswith(("_spawn", "_fork", "_notebook")):
        raise UserError(f"trainer.strategy={strategy}: use ddp, also in a sweep")
    if trainer.num_devices > max(MAX_DEVICES, os.cpu_count() or 1):
        raise UserError(f"trainer.devices={trainer.num_devices}: this machine does not have that many")
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_nodes > 1 and not (environment and environment.creates_processes_externally):
        raise UserError(f"trainer.num_nodes={trainer.num_nodes} needs Slurm: trainer=slurm or hydra/launcher=slurm")
    autocast_dtype(precision)  # raises for a precision in which detectors cannot score
    if trainer.precision != SHORT.get(precision, precision):
        raise UserError(f"trainer.precision={precision} is not available here: set it to {trainer.precision}")


class Stage(NamedTuple):
    """A stage of a training with its own Trainer, curve and checkpoint; the last stage trains the detector."""

    module: "pl.LightningModule"
    epochs: int  # 0 if the module is only validated, which calibrates it
    last: Path  # checkpoint of the last epoch
    best: Path | None  # checkpoint of the best validation; None if nothing is validated
    resumed: bool  # whether the stage continues from `last`


def plan_stages(
    config: DictConfig,
    run: RunFolder,
    data: "AnomalyDataModule",
    module: "AnomalyModule",
    trainer: "pl.Trainer",
    resumed: bool,
) -> list[Stage]:
    """Determine the stages of a training and their lengths, and load the existing weights.

    Raises:
        UserError: a checkpoint does not fit, or a stage has been trained for too many epochs.
    """
    from adlight.runs.checkpoints import trained_epochs

    stages = [Stage(module, 0, run.last_checkpoint, run.best_checkpoint, False)]
    if module.pretraining is not None:
        stages.insert(0, Stage(module.pretraining, 0, run.stage_checkpoint, None, False))
    elif not resumed and module.pretrained is not None:
        source = RunFolder(module.pretrained.run)
        load_weights(module, source.checkpoint("last"), (module.pretrained.prefix,))
        check_same_split(config, source.read_config(), str(source))
        check_held_out(source, data)
    count_batches = functools.partial(_count_batches, run, data, trainer)
    for i, stage in enumerate(stages):
        training: Any = stage.module
        epochs = training.num_epochs(config.trainer.max_epochs, count_batches)
        if isinstance(config.trainer.limit_train_batches, int):  # a short trial
            epochs = min(epochs, config.trainer.max_epochs)
        stages[i] = stage._replace(epochs=epochs, resumed=resumed and stage.last.exists())
        name = type(stage.module).__name__
        if epochs != config.trainer.max_epochs and trainer.is_global_zero:
            print(f"{name}: {epochs} epochs (trainer.max_epochs does not apply)", flush=True)
        if stages[i].resumed:
            load_weights(stage.module, stage.last)  # has a shorter message for a damaged file than Lightning
            done, is_over = trained_epochs(stage.last), any(later.last.exists() for later in stages[i + 1 :])
            if done > epochs or (is_over and done < epochs):
                raise UserError(f"{name} has been trained for {done} epochs: it cannot have {epochs}")
    return stages


def _count_batches(run: RunFolder, data: "AnomalyDataModule", trainer: "pl.Trainer") -> int:
    """Count the batches of an epoch in each process."""
    with run.data_lock():
        data.prepare_data()
    data.setup("fit")
    images = math.ceil(len(data.records("train")) / trainer.world_size)
    batches, limit = math.ceil(images / data.batch_size), trainer.limit_train_batches
    return batches if isinstance(limit, int) else int(batches * limit)


def begin_once(
    run: RunFolder, metadata: dict[str, Any], config: DictConfig | None = None, trained: Sequence[str] = ()
) -> Callable[[], None]:
    """Return a function whose first call writes `run.json` and, for a resumed run, its config with the overrides.

    For a new run, it also writes the paths of the images that are `trained` on.

    A resumed run calls it before its first new checkpoint or, if no epoch is left, before its results. Earlier
    failures, such as a mistyped setting or missing data, therefore leave the folder unchanged.
    """
    metadata = dict(metadata)  # the caller adds entries later
    if rank() == 0:
        print(f"run folder: {run}", flush=True)

    @functools.cache
    def begin() -> None:
        if rank() == 0:
            run.begin(metadata)
            if trained:
                write_trained(run.path, trained)
            if config is not None:
                run.write_config(config)

    return begin
