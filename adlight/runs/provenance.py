"""Where a result comes from: command, seed, commit, versions and machine."""

import os
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "torchvision",
    "pytorch-lightning",
    "torchmetrics",
    "hydra-core",
    "kornia",
    "lpips",
    "numpy",
)


def describe(seed: int) -> dict[str, Any]:
    """What it takes to do a run again: command, seed, commit, versions, machine."""
    return {
        "command": shlex.join(["python", "-m", main_module(), *sys.argv[1:]]),
        "seed": seed,
        "commit": git_commit(),
        "versions": {"adlight": version("adlight"), "python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
        "machine": machine(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def main_module() -> str:
    """Name of the entry point, such as `adlight.train`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else "adlight.train"


def git_commit() -> str | None:
    """Commit of the code, with `+changes` if the working tree differs from it; None outside a checkout."""
    try:
        words = ["describe", "--always", "--abbrev=12", "--dirty=+changes", "--exclude=*"]
        found = subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def machine() -> str:
    """The device that does the work, and the number of cores."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, {os.cpu_count()} cores"
    return f"{os.cpu_count()} cores ({platform.machine()}), no GPU"
