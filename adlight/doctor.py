"""What this machine has, and what is wrong with a data set: `python -m adlight.doctor [dataset=mvtec ...]`."""

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from adlight.cli import main as cli
from adlight.cli.arguments import value_of
from adlight.data.checks import few_normals, inspect
from adlight.runs import provenance
from adlight.types import UserError


def doctor(config: DictConfig) -> list[str]:
    """Print what there is. -> what is wrong with it, a line each that says what to do."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a log file has no width of its own
    facts, problems = machine()
    table = Table(show_header=False, title="this machine", title_justify="left")
    for name, value in facts.items():
        table.add_row(name, value)
    console.print(table)
    if config.get("dataset") is not None:
        problems += check_data(config, console)
    for problem in problems:
        console.print(f"problem: {problem}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"{len(problems)} problem(s)" if problems else "all fine", highlight=False)
    return problems


def machine() -> tuple[dict[str, str], list[str]]:
    """What the machine and the environment have, by name, and what is wrong with them."""
    from adlight.loggers.wandb import has_wandb_key

    problems = []
    versions = {name: installed(name) for name in provenance.PACKAGES}
    problems += [f"package {name} is missing: pip install adlight" for name, found in versions.items() if not found]
    facts = {"python": f"{platform.python_version()} ({sys.executable})", "system": platform.platform()}
    facts |= {"cores": str(os.cpu_count()), "memory": memory(), "disk": f"{free_gb('.'):.0f} GB free in {Path.cwd()}"}
    if free_gb(".") < 1:
        problems.append(
            f"{Path.cwd()} has less than 1 GB free: make room, or choose another with hydra.run.dir=<folder>"
        )
    facts["GPU"], wrong = gpu()
    problems += wrong
    try:
        import torchvision  # noqa: F401  (it checks on import whether its operators fit this torch)
    except (ImportError, RuntimeError) as error:
        problems.append(f"torchvision does not fit torch ({error}): install both from the same index in one command")
    facts["packages"] = ", ".join(f"{name} {found or 'missing'}" for name, found in versions.items())
    facts["AlexNet's weights"] = alexnet()
    facts["W&B key"] = "set" if has_wandb_key() else "none: logger=wandb stays offline"
    facts["data_root"] = os.environ.get("ADLIGHT_DATA") or "data (the environment's ADLIGHT_DATA is not set)"
    return facts, problems


def installed(package: str) -> str | None:
    """A package's version, None where it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def memory() -> str:
    """The machine's memory."""
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"
    except (AttributeError, ValueError, OSError):  # not on every system
        return "unknown"


def free_gb(folder: str) -> float:
    """Free space, in GB."""
    return shutil.disk_usage(folder).free / 1e9


def gpu() -> tuple[str, list[str]]:
    """The GPUs, and what keeps torch from using one that is there."""
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return ", ".join(f"{one.name} {one.total_memory / 1e9:.0f} GB" for one in found) + f" ({build})", []
    wrong = []
    if Path("/dev/nvidia0").exists():
        wrong.append(f"an NVIDIA GPU is there, but torch {torch.__version__} ({build}) cannot use it: see pytorch.org")
    return f"none (torch built with {build}): trainer=cpu, model=mae_small", wrong


def alexnet() -> str:
    """Whether the weights that LPIPS needs are there."""
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-owt-7be5be79.pth"
    return str(path) if path.exists() else "none: model=mae fetches them once; model.objective.lpips=0 does without"


def check_data(config: DictConfig, console: Console) -> list[str]:
    """Read all of a data set and print what was found. -> what is wrong with it."""
    for name in ("train_limit", "test_limit"):
        if name in config.dataset:
            config.dataset[name] = None  # all of it
    data = instantiate(config.dataset, _convert_="all")
    found, problems = inspect(data.source)
    for part in found:
        console.print(part, highlight=False, soft_wrap=True, markup=False)
    return list(dict.fromkeys(problems + few_normals(data.source, data.val_fraction, data.seed)))


def arguments(argv: list[str]) -> list[str]:
    """Check that settings of a data set come with its name.

    Raises:
        UserError: they do not.
    """
    settings = [word for word in argv if word.startswith("dataset.")]
    if settings and value_of(argv, "dataset") is None:
        raise UserError(f"{settings[0]} belongs to which data set? add dataset=mvtec, dataset=folder or another")
    return argv


def main() -> None:
    """Entry point."""
    problems: list[str] = []

    def task(config: DictConfig) -> None:
        problems.extend(doctor(config))

    cli.run(task, "doctor", arguments)
    if problems:
        sys.exit(1)


if __name__ == "__main__":
    main()
