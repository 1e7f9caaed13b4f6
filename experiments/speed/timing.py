"""What the measurements share: rows of the result, clocks, memory, the composed config."""

import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from adlight.runs.config import CONF

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Row = dict[str, Any]  # row, what, value, unit, aim, spread


def composed(*overrides: str) -> DictConfig:
    """The config of `python -m adlight.train <overrides>`, without a run folder."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["run_dir=.", *overrides])


def composed_bare(*overrides: str) -> DictConfig:
    """The same with nothing beside the training, on the device that is measured."""
    place = "gpu" if DEVICE.type == "cuda" else "cpu"
    quiet = "logger=none", "callbacks=none", "trainer.enable_progress_bar=false"
    return composed(f"trainer={place}", *quiet, *overrides)


def seconds(work: Callable[[], Any]) -> float:
    """How long one call takes, the device's part included."""
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def alternate(*works: Callable[[], Any], repeats: int, warmup: int = 1) -> list[list[float]]:
    """Seconds of each piece of work, A B A B ..., so that a change of the machine's speed hits all alike."""
    times: list[list[float]] = [[] for _ in works]
    for turn in range(-warmup, repeats):
        for work, mine in zip(works, times, strict=True):
            taken = seconds(work)
            if turn >= 0:
                mine.append(taken)
    return times


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Ratios of neighbours in time."""
    return [a / b for a, b in zip(above, below, strict=True)]


def row(name: str, what: str, values: float | Sequence[float], unit: str, aim: str = "") -> Row:
    """A line of the result: the median of some values, and their range."""
    values = list(values) if isinstance(values, Sequence) else [values]
    spread = f"{short(min(values))}...{short(max(values))} of {len(values)}" if len(values) > 1 else ""
    return {"row": name, "what": what, "value": short(median(values)), "unit": unit, "aim": aim, "spread": spread}


def short(value: float) -> str:
    """Three digits, four where that is still a whole number."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def memory(field: str = "VmRSS") -> int:
    """Bytes of this process in memory: now (VmRSS) or at most since `forget_peak` (VmHWM)."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def forget_peak() -> None:
    """Start VmHWM again from what is in memory now."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
