"""Teach a finished run with labelled images: `adlight learn run=<folder> labels=<csv or folder>`."""

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from adlight.cli import main as cli
from adlight.cli.resume import use_advice
from adlight.cli.words import require, value_of
from adlight.data.source import Source
from adlight.learning.labels import read_labels
from adlight.runs import provenance
from adlight.runs.config import instantiate_node
from adlight.runs.folder import RunFolder
from adlight.runs.labels import MODULE, LabelFolder, learned_config, write_learned
from adlight.runs.restore import frozen_config, require_run
from adlight.runs.tables import OBJECTIVE
from adlight.runs.weights import load_weights
from adlight.train import build
from adlight.types import Record, UserError

if TYPE_CHECKING:  # torch takes seconds: not for --help
    import pytorch_lightning as pl

    from adlight.data.datamodule import AnomalyDataModule
    from adlight.detection.module import AnomalyModule
    from adlight.learning.module import LearnedModule
    from adlight.learning.samples import CategoryNames, Labelled

FOLDS = 5


def learn(config: DictConfig) -> Path:
    """Store the labels, fit the head, find the thresholds, and write the learned detector. -> its folder.

    Raises:
        UserError: there are no labels or too few for the target, or the run cannot learn from labels.
    """
    from adlight.learning.samples import CategoryNames, score_labelled, score_unseen
    from adlight.learning.thresholds import describe_decisions, describe_labels, find_thresholds
    from adlight.runs.programs import check_values

    check_values(config)
    if config.recall is not None and config.precision is not None:
        raise UserError("recall and precision are both set, but a threshold can meet only one of them: leave one out")
    run, folder = RunFolder(config.run), RunFolder(HydraConfig.get().runtime.output_dir)
    saved = frozen_config(run, config.device, config.root)
    if saved.model.get("_target_") == MODULE:
        raise UserError(
            f"{run} has already learned from labels: name the run it came from, which learns from all labels again"
        )
    data, module, trainer = build(saved)
    load_weights(module, path := run.checkpoint(config.ckpt or saved.ckpt))
    weights = deepcopy(module.state_dict())  # a validation refits some buffers
    names = CategoryNames(module, config.category)
    records = store_labels(run, config.labels, names)
    labelled = score_labelled(module, records, data, str(saved.trainer.precision), names.of_image)
    learned = fit_learned(module, labelled, data, trainer, bool(config.head))
    counts = {"defects": learned.num_defects, "normals": learned.num_normals}
    made = learned_config(run.config(), width=learned.weight.shape[1], **counts, folds=learned.folds)
    learned.calibration = instantiate_node(made.calibration)
    learned.calibration.load_state_dict(module.calibration.state_dict())
    lines = describe_labels(labelled) + warn_of_test(run) + provenance.describe_trained(run, data)
    if len(learned.weight):  # normal scores have changed
        validation = trainer.validate(learned, data, verbose=False)[0]
        if OBJECTIVE in validation:
            lines.append(f"{OBJECTIVE} of synthetic defects: {validation[OBJECTIVE]:.4f}")
    unseen = score_unseen(learned, labelled, data.frame.size)
    lines += find_thresholds(learned, labelled, unseen, config.recall, config.precision)
    made.calibration.asked = learned.calibration.asked  # type: ignore[attr-defined]
    lines += describe_decisions(module, learned, labelled, unseen)
    metadata = provenance.describe(saved.seed) | {"learned_from": str(run), "checkpoint": str(path), "said": lines}
    state = {**learned.state_dict(), **{f"detector.{name}": value for name, value in weights.items()}}
    write_learned(folder, run, made, state, metadata)
    lines.append(f"threshold: {learned.calibration.describe(list(learned.calibration.categories))}")
    print(*lines, f"learned: {folder}", use_advice(folder), sep="\n")
    return folder.path


def store_labels(run: RunFolder, place: str | None, names: "CategoryNames") -> list[Record]:
    """Store labels with the run; raise a UserError if an image is unreadable. -> all labels of the run."""
    labels = LabelFolder(run.path)
    if place is not None:
        records = [record._replace(category=names.of_record(record)) for record in read_labels(place)]
        for record in records:
            Source().read_mask(record, Source().read(record).size)
        new, changed = labels.add(records)
        print(f"labels: {labels}: {new} new, {changed} changed", flush=True)
    return labels.read()


def fit_learned(
    module: "AnomalyModule",
    labelled: list["Labelled"],
    data: "AnomalyDataModule",
    trainer: "pl.Trainer",
    head: bool,
) -> "LearnedModule":
    """Build the learned detector and, with `head` and at least one labelled defect, fit its head."""
    from adlight.learning.module import LearnedModule
    from adlight.learning.samples import fit_heads, held_out_normals

    defects = sum(image.label for image in labelled)
    width, normals = labelled[0].cells.features.shape[-1], len(labelled) - defects
    learned = LearnedModule(module, width, defects if head else 0, normals if head else 0, FOLDS)
    if head and defects:
        learned.set_heads(*fit_heads(held_out_normals(module, data, trainer, FOLDS), labelled, FOLDS))
    return learned


def warn_of_test(run: RunFolder) -> list[str]:
    """Warn of labelled images in the run's test split: the learned detector has seen them."""
    if (table := run.predictions()) is None:
        return []
    count = LabelFolder(run.path).count_among(table["path"])
    return [f"{count} labelled images are of the run's test: adlight evaluate would count them"] if count else []


def arguments(argv: list[str]) -> list[str]:
    """Check `run` and `labels` before a folder is created."""
    run = RunFolder(require(argv, "run", "learn run=<run folder> labels=<csv or folder>"))
    run.config()  # raises if it is not trusted
    require_run(run)
    labels = value_of(argv, "labels")
    if labels not in (None, "null"):
        read_labels(str(labels))
    elif not LabelFolder(run.path).read():
        raise UserError(f"no labels in {LabelFolder(run.path)} yet: add labels=<csv or folder>")
    return argv


def main() -> None:
    """Run as a program."""
    cli.run(lambda config: cli.run_logged(learn, config), "learn", arguments)


if __name__ == "__main__":
    main()
