"""Check this machine and a data set: `python -m adlight.doctor [dataset=mvtec ...]`."""

import math
import os
import platform
import shutil
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from adlight.cli import main as cli
from adlight.cli.arguments import value_of
from adlight.data.checks import check_source, check_split
from adlight.runs import provenance
from adlight.runs.checks import check_node, check_values
from adlight.runs.config import instantiate_node
from adlight.types import UserError

if TYPE_CHECKING:  # torch takes seconds: not for --help
    from adlight.data.datamodule import AnomalyDataModule


def doctor(config: DictConfig) -> list[str]:
    """Print what was found. -> the problems, one line each that says what to do."""
    from adlight.runs.programs import DoctorSettings

    check_values(DoctorSettings, config)
    dataset = config.get("dataset")
    sizes = [] if dataset is None else [describe_size(dataset)]
    data = None if dataset is None else make_whole(dataset)
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=160)  # a log file has no width of its own
    found, problems = check_machine()
    table = Table("", "", show_header=False, title="this machine", title_justify="left")
    table.columns[1].overflow = "fold"  # a long path is not cut
    for name, value in found.items():
        table.add_row(name, value)
    console.print(table)
    lines, wrong = ([], []) if data is None else check_dataset(data, str(config.calibration.image))
    problems += wrong
    lines += [*sizes, *(f"problem: {problem}" for problem in problems)]
    for line in (*lines, f"{len(problems)} problem(s)" if problems else "all fine"):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    return problems


def check_machine() -> tuple[dict[str, str], list[str]]:
    """List what the machine and the environment have, by name. -> the facts, and the problems."""
    from adlight.loggers.wandb import has_wandb_key

    free_gb = shutil.disk_usage(".").free / 1e9
    versions = {name: _version(name) for name in provenance.PACKAGES}
    problems = [f"package {name} is missing: pip install adlight" for name, found in versions.items() if not found]
    if free_gb < 1:
        problems.append(f"{Path.cwd()} has less than 1 GB free: make room, or set hydra.run.dir=<folder>")
    gpu, gpu_problems = check_gpu()
    try:
        import torchvision  # noqa: F401  (it checks on import whether its operators fit this torch)
    except (ImportError, RuntimeError) as error:
        problems.append(f"torchvision does not fit torch ({error}): install both from the same index in one command")
    facts = {
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "cores": str(os.cpu_count()),
        "memory": _memory(),
        "disk": f"{free_gb:.0f} GB free in {Path.cwd()}",
        "GPU": gpu,
        "packages": ", ".join(f"{name} {found or 'missing'}" for name, found in versions.items()),
        "AlexNet's weights": _alexnet(),
        "W&B key": "set" if has_wandb_key() else "none: logger=wandb stays offline",
        "data_root": os.environ.get("ADLIGHT_DATA") or "data (the environment's ADLIGHT_DATA is not set)",
    }
    return facts, problems + gpu_problems


def check_gpu() -> tuple[str, list[str]]:
    """Describe the GPUs, and what keeps torch from using one that is there."""
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return ", ".join(f"{gpu.name} {gpu.total_memory / 1e9:.0f} GB" for gpu in found) + f" ({build})", []
    unused = f"torch {torch.__version__} ({build}) cannot use the NVIDIA GPU of this machine: see pytorch.org"
    problems = [unused] if Path("/dev/nvidia0").exists() else []
    return f"none (torch built with {build}): trainer=cpu, model=mae_small", problems


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"
    except (AttributeError, ValueError, OSError):  # not on every system
        return "unknown"


def _alexnet() -> str:
    from adlight.detection.lpips import alexnet_path

    path = alexnet_path()
    return str(path) if path.exists() else "none: model=mae fetches them once; model.objective.lpips=0 does without"


def make_whole(dataset: DictConfig) -> "AnomalyDataModule":
    """Make a data set without the limits that cut it, and without a frame of its images' shapes.

    Raises:
        UserError: a setting of the wrong type, or out of range.
    """
    if dataset.get("keep_shape") == "auto":
        dataset.keep_shape = False
    check_node(dataset)
    for name, everything in (("train_limit", None), ("test_limit", None), ("balanced_test", False)):
        if name in dataset:
            dataset[name] = everything
    return instantiate_node(dataset)


def check_dataset(data: "AnomalyDataModule", image: str) -> tuple[list[str | Table], list[str]]:
    """Read a whole data set. -> what was found, with what a method of calibration promises, and the problems."""
    found, problems = check_source(data.source, data.frame)
    unsplit = check_split(data.source, data.val_fraction, data.seed)
    if not unsplit:
        found += describe_promises(data, image)
    return found, list(dict.fromkeys(problems + unsplit))


def describe_promises(data: "AnomalyDataModule", image: str) -> list[str]:
    """Say which false alarm rate each category's held-out images can promise by a method of calibration."""
    from adlight.data.splits import split_normals
    from adlight.metrics.methods import Method

    method = Method.parse(image)
    train, held_out = split_normals(data.source.train(), data.val_fraction, data.seed)
    normals, lines = Counter(record.category for record in [*train, *held_out]), list[str]()
    for name, count in Counter(record.category for record in held_out).items():
        line, promised = f"thresholds of {name}: {image} of {count} held-out normal images", method.promised(count)
        if method.needed is not None and method.falls_short(count):
            share = math.ceil(100 * method.needed / normals[name]) / 100
            advice = f"dataset.val_fraction={share:g}" if share <= 0.5 else "add normal images"
            advice += f" (models that are fitted without epochs, such as retrieval, calibrate on all {normals[name]})"
            line += f" can promise no less than {promised:.3g} false alarms; {method.needed} are needed: {advice}"
        elif promised is not None:
            line += f" promises at most {promised:.3g} false alarms"
        lines.append(line)
    return lines


def describe_size(dataset: DictConfig) -> str:
    """Say which size a training would take: that of the model that was named."""
    model, size = HydraConfig.get().runtime.choices["model"], str(dataset.image_size).replace(" ", "")
    if model is None:
        return f"that is for dataset.image_size={size}: model=<name> tells what a model would choose"
    if dataset.keep_shape == "auto":
        return f"model={model} chooses by itself (dataset.keep_shape=auto), from dataset.image_size={size}"
    return f"model={model} takes dataset.image_size={size} unless dataset.keep_shape=auto is set"


def arguments(argv: list[str]) -> list[str]:
    """Require the data set's name beside its settings, or a model's.

    Raises:
        UserError: it is missing.
    """
    settings = [word for word in argv if word.startswith(("dataset.", "model="))]
    if settings and value_of(argv, "dataset") is None:
        raise UserError(f"{settings[0]} belongs to which data set? add dataset=mvtec, dataset=folder or another")
    return argv


def main() -> None:
    """Run as a program."""
    problems: list[str] = []

    def task(config: DictConfig) -> None:
        problems.extend(doctor(config))

    cli.run(task, "doctor", arguments)
    if problems:
        sys.exit(1)


if __name__ == "__main__":
    main()
