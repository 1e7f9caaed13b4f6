"""Row `start`: how long until help is shown, and until the first step is done."""

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from timing import Row, row

TRAIN = (sys.executable, "-m", "adlight.train")


def measure() -> list[Row]:
    with TemporaryDirectory() as folder:
        steps = [first_step(folder, turn) for turn in range(4)]
        helped = [run(folder, "--help") for _ in range(6)][1:]
        torch = [run(folder, program=(sys.executable, "-c", "import torch")) for _ in range(3)]
    return [
        row("start", "`python -m adlight.train --help`", helped, "s", "<= 3"),
        row("start", "for comparison: `import torch` alone", torch, "s"),
        row("start", "`python -m adlight.train` to the end of its first step, generating the data", steps[0], "s"),
        row("start", "the same, data already there", steps[1:], "s"),
    ]


def run(folder: str, *words: str, program: tuple[str, ...] = TRAIN) -> float:
    start = time.perf_counter()
    subprocess.run([*program, *words], cwd=folder, env=environment(), stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def first_step(folder: str, turn: int) -> float:
    words = ["model=mae_small", "dataset=synthetic", f"hydra.run.dir=runs/{turn}", f"dataset.root={folder}/data"]
    return run(folder, *words, "+callbacks.first._target_=first.FirstStep")


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
