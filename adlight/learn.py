"""Teach a finished run by labelled images: `python -m adlight.learn run=<folder> labels=<csv or folder>`."""

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from adlight.cli import main as cli
from adlight.cli.alone import run_logged
from adlight.cli.arguments import quote, quote_values, shows_help, value_of
from adlight.data.source import Source
from adlight.learning.labels import read_labels
from adlight.runs import provenance
from adlight.runs.checks import check_values
from adlight.runs.config import instantiate_node
from adlight.runs.folder import RunFolder
from adlight.runs.frozen import frozen_config
from adlight.runs.labels import LabelFolder
from adlight.runs.learned import MODULE, learned_config, write_learned
from adlight.runs.restore import load_weights
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
    """Keep the labels, fit the head, find the thresholds, and write the learned detector. -> its folder.

    Raises:
        UserError: no labels, labels that do not support what is asked for, or a run that cannot be learned from.
    """
    from adlight.learning.decisions import describe_decisions, describe_labels, find_thresholds
    from adlight.learning.samples import CategoryNames, score_labelled, scores_unseen
    from adlight.runs.programs import LearnSettings

    check_values(LearnSettings, config)
    if config.recall is not None and config.precision is not None:
        raise UserError("recall and precision cannot both be asked for: one threshold follows from one of them")
    run, folder = RunFolder(config.run), RunFolder(HydraConfig.get().runtime.output_dir)
    saved = frozen_config(run, config.device, config.root)
    if saved.model.get("_target_") == MODULE:
        raise UserError(f"{run} has been learned already: name the run that it came from, all labels are learned again")
    data, module, trainer = build(saved)
    load_weights(module, path := run.checkpoint(config.ckpt or saved.ckpt))
    weights = deepcopy(module.state_dict())  # a validation measures what a detector knows of normal images anew
    rule = CategoryNames(module, config.category)
    records = keep_labels(run, config.labels, rule)
    labelled = score_labelled(module, records, data, str(saved.trainer.precision), rule.of_batch)
    learned = teach(module, labelled, data, trainer, bool(config.head))
    made = learned_config(run.config(), **settings_of(learned))
    learned.calibration = instantiate_node(made.calibration)
    learned.calibration.load_state_dict(module.calibration.state_dict())
    lines = [*describe_labels(labelled), *warn_of_test(run, LabelFolder(run.path))]
    if len(learned.weight):  # what a normal score is has changed
        found = trainer.validate(learned, data, verbose=False)[0]
        lines += [f"val/auroc of synthetic defects: {found['val/auroc']:.4f}"] if "val/auroc" in found else []
    unseen = scores_unseen(learned, labelled, data.frame.size)
    lines += find_thresholds(learned, labelled, unseen, config.recall, config.precision)
    made.calibration.asked = learned.calibration.asked  # type: ignore[attr-defined]
    lines += describe_decisions(module, learned, labelled, unseen)
    metadata = provenance.describe(saved.seed) | {"learned_from": str(run), "checkpoint": str(path), "said": lines}
    state = {**learned.state_dict(), **{f"detector.{name}": value for name, value in weights.items()}}
    write_learned(folder, run, made, state, metadata)
    known = list(learned.calibration.categories)
    print(*lines, f"threshold: {learned.calibration.describe(known)}", f"learned: {folder}", sep="\n")
    print(f"use it: python -m adlight.predict {quote('run', folder.path)} images=<file or folder>")
    return folder.path


def keep_labels(run: RunFolder, place: str | None, rule: "CategoryNames") -> list[Record]:
    """Add labels to those that are kept beside the run, after each image and mask was read. -> all of them.

    Raises:
        UserError: there are none, or one that cannot be read.
    """
    labels = LabelFolder(run.path)
    if place is not None:
        records = [one._replace(category=rule.of_record(one)) for one in read_labels(place)]
        for record in records:
            Source().read_mask(record, Source().read(record).size)
        new, changed = labels.add(records)
        print(f"labels: {labels}: {new} new, {changed} changed", flush=True)
    if not (kept := labels.read()):
        raise UserError(f"no labels in {labels} yet: give labels=<csv or folder>")
    return kept


def teach(
    module: "AnomalyModule",
    labelled: list["Labelled"],
    data: "AnomalyDataModule",
    trainer: "pl.Trainer",
    head: bool,
) -> "LearnedModule":
    """Fit the head, unless there is no labelled defect or it is not wanted; the detector keeps its weights."""
    from adlight.learning.module import LearnedModule
    from adlight.learning.samples import fit_heads, held_out_normals

    defects = sum(one.label for one in labelled)
    width, normals = labelled[0].found.features.shape[-1], len(labelled) - defects
    learned = LearnedModule(module, width, defects if head else 0, normals if head else 0, FOLDS)
    if head and defects:
        learned.set_heads(*fit_heads(held_out_normals(module, data, trainer, FOLDS), labelled, FOLDS))
    return learned


def settings_of(learned: "LearnedModule") -> dict[str, int]:
    """Give what the config says of a learned detector."""
    counts = {"defects": learned.num_defects, "normals": learned.num_normals}
    return {"width": learned.weight.shape[1], **counts, "folds": learned.folds}


def warn_of_test(run: RunFolder, labels: LabelFolder) -> list[str]:
    """Say how many labelled images the run was tested with, as a test of what has learned them says nothing."""
    if (table := run.predictions()) is None:
        return []
    count = labels.count_among(table["path"])
    return [f"{count} labelled images are of the run's test: adlight.evaluate would count them"] if count else []


def arguments(argv: list[str]) -> list[str]:
    """Check what can be checked before a folder is made, and quote what Hydra's grammar would take apart.

    Raises:
        UserError: `run` is missing or no run, or the labels cannot be read.
    """
    if shows_help(argv):
        return argv
    if (run := value_of(argv, "run")) is None:
        raise UserError("say which: python -m adlight.learn run=<run folder> labels=<csv or folder>")
    RunFolder(run).config()
    labels = value_of(argv, "labels")
    if labels not in (None, "null"):
        read_labels(str(labels))
    elif not LabelFolder(run).read():
        raise UserError(f"no labels in {LabelFolder(run)} yet: give labels=<csv or folder>")
    return quote_values(argv, "run", "labels", "root")


def main() -> None:
    """Run as a program."""
    cli.run(lambda config: run_logged(learn, config), "learn", arguments)


if __name__ == "__main__":
    main()
