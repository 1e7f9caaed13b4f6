"""Check this machine and a data set: `adlight doctor [dataset=mvtec ...]`."""

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
from rich.text import Text

from adlight.cli import main as cli
from adlight.cli.words import value_of
from adlight.data.checks import check_source
from adlight.runs import provenance
from adlight.runs.config import instantiate_node
from adlight.types import UserError

if TYPE_CHECKING:  # torch takes seconds: not for --help
    from adlight.data.datamodule import AnomalyDataModule


def doctor(config: DictConfig) -> list[str]:
    """Print facts and problems. -> the problems, each a line that says what to do."""
    from adlight.runs.programs import check_values

    check_values(config)
    dataset = config.get("dataset")
    sizes = [] if dataset is None else [describe_size(dataset)]
    data = None if dataset is None else make_dataset(dataset)
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=160)  # Rich assumes 80 columns for a log file
    facts, problems = check_machine()
    table = Table("", "", show_header=False, title="this machine", title_justify="left")
    table.columns[1].overflow = "fold"  # long paths are wrapped, not truncated
    for name, value in facts.items():
        table.add_row(name, Text(value))
    console.print(table)
    method, model = str(config.calibration.image), config.get("model")
    cross_fits = model is not None and not any("optimizer" in str(key) for key in model)
    lines, data_problems = ([], []) if data is None else check_dataset(data, method, cross_fits)
    problems += data_problems
    lines += [*sizes, *(f"problem: {problem}" for problem in problems)]
    for line in (*lines, f"{len(problems)} problem(s)" if problems else "all fine"):
        console.print(line, highlight=False, soft_wrap=True, markup=False, emoji=False)
    return problems


def check_machine() -> tuple[dict[str, str], list[str]]:
    """Check the machine and the environment. -> facts by name, and problems."""
    from adlight.detection.similarity import alexnet_path
    from adlight.loggers.wandb import has_wandb_key

    weights = alexnet_path()
    no_weights = "none: model=mae downloads them once; model.objective.lpips=0 needs none"
    free_gb = shutil.disk_usage(".").free / 1e9
    versions = {name: _version(name) for name in provenance.PACKAGES}
    problems = [f"package {name} is missing: pip install adlight" for name, found in versions.items() if not found]
    if free_gb < 1:
        problems.append(f"{Path.cwd()} has less than 1 GB free: make room, or set hydra.run.dir=<folder>")
    gpu, gpu_problems = check_gpu()
    try:
        import torchvision  # noqa: F401  (its import fails if it was built for another torch)
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
        "AlexNet's weights": str(weights) if weights.exists() else no_weights,
        "W&B key": "set" if has_wandb_key() else "none: logger=wandb stays offline",
        "data_root": os.environ.get("ADLIGHT_DATA") or "data (the environment's ADLIGHT_DATA is not set)",
    }
    return facts, problems + gpu_problems


def check_gpu() -> tuple[str, list[str]]:
    """Describe the GPUs. -> the description, and a problem if torch cannot use an existing GPU."""
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return ", ".join(f"{gpu.name} {gpu.total_memory / 1e9:.0f} GB" for gpu in found) + f" ({build})", []
    unused = f"torch {torch.__version__} ({build}) cannot use the NVIDIA GPU of this machine: see pytorch.org"
    problems = [unused] if Path("/dev/nvidia0").exists() else []
    return f"none (torch built with {build}): trainer=cpu, model=retrieval", problems


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"
    except (AttributeError, ValueError, OSError):  # not available on every system
        return "unknown"


def make_dataset(dataset: DictConfig) -> "AnomalyDataModule":
    """Build the data set without limits, with one frame for all shapes; raise a UserError for a bad setting."""
    from adlight.runs.checks import check_node

    if dataset.get("keep_shape") == "auto":
        dataset.keep_shape = False
    check_node(dataset)
    for name, unlimited in (("train_limit", None), ("test_limit", None), ("balanced_test", False)):
        if name in dataset:
            dataset[name] = unlimited
    data = instantiate_node(dataset)
    if data.bucket is not None:
        data.bucket.copy()
    return data


def check_dataset(data: "AnomalyDataModule", image: str, cross_fits: bool) -> tuple[list[str | Table], list[str]]:
    """Read and check a whole data set for the calibration method `image`. -> findings, and problems."""
    findings, problems = check_source(data.source, data.frame)
    try:
        findings += describe_guarantees(data, image, cross_fits)
    except UserError as error:  # too few normal images to hold some out
        problems.append(str(error))
    return findings, list(dict.fromkeys(problems))


def describe_guarantees(data: "AnomalyDataModule", image: str, cross_fits: bool) -> list[str]:
    """Describe the false alarm rate that a calibration method guarantees; cross-fitting takes training images too."""
    from adlight.data.splits import split_normals
    from adlight.metrics.methods import Method

    method, lines = Method.parse(image), list[str]()
    train, held_out = split_normals(data.source.train(), data.val_fraction, data.seed)
    normals = Counter(record.category for record in [*train, *held_out])
    calibrating = normals if cross_fits else Counter(record.category for record in held_out)
    kind, limit = ("normal images", "about") if cross_fits else ("held-out normal images", "at most")
    for name, count in calibrating.items():
        line, promised = f"thresholds of {name}: {image} of {count} {kind}", method.promised(count)
        if method.needed is not None and method.falls_short(count):
            advice = "add normal images" if cross_fits else _advise_more(method.needed, normals[name])
            line += f" promise no false alarm rate below {promised:.3g}; {method.needed} are needed: {advice}"
        elif promised is not None:
            line += f" promise a false alarm rate of {limit} {promised:.3g}"
        lines.append(line)
    return lines


def _advise_more(needed: int, normals: int) -> str:
    share = math.ceil(100 * needed / normals) / 100
    advice = f"dataset.val_fraction={share:g}" if share <= 0.5 else "add normal images"
    return f"{advice} (models that need no epochs, such as retrieval, calibrate on all {normals})"


def describe_size(dataset: DictConfig) -> str:
    """Describe the image size that a training with the chosen model would use."""
    model, size = HydraConfig.get().runtime.choices["model"], str(dataset.image_size).replace(" ", "")
    if model is None:
        return f"checked for dataset.image_size={size}; add model=<name> to see the size that a model would use"
    if dataset.keep_shape == "auto":
        return f"model={model} chooses its own size (dataset.keep_shape=auto), based on dataset.image_size={size}"
    return f"model={model} uses dataset.image_size={size} unless dataset.keep_shape=auto is set"


def arguments(argv: list[str]) -> list[str]:
    """Raise a UserError if a data set's settings or a model are given without a data set."""
    settings = [word for word in argv if word.startswith(("dataset.", "model="))]
    if settings and value_of(argv, "dataset") is None:
        raise UserError(f"{settings[0]} needs a data set: add dataset=mvtec, dataset=folder or another")
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
