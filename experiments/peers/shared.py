"""What both sides share: clocks, peak memory, generated files and maps. Needs numpy, Pillow and torch alone."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

SIDE, BATCH = 256, 16
BACKBONE, LAYERS, CORESET = "resnet18", ("layer2", "layer3"), 0.002
BANK, CHANNELS = 1000, 384  # cells of a bank that is not chosen but drawn, and features of a cell
COUNTS = {"good": 125, "bad": 75}  # one side's fit and test: 100 to train, 25 + 75 to test


def clock() -> float:
    """Processor time of one thread, which other work on the machine changes less; wall time of several."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def rate(work: Callable[[], int], repeats: int = 5) -> float:
    """Things a second, the median of some repeats after a first that does not count."""
    found = []
    for _ in range(1 + repeats):
        start = clock()
        found.append(work() / (clock() - start))
    return sorted(found[1:])[repeats // 2]


def peak() -> float:
    """Most memory of this process since `forget_peak`, in MB."""
    return _memory("VmHWM")


def forget_peak() -> float:
    """Start the peak again. -> MB in memory now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) * 1024 / 1e6


def make_files(work: Path, files: int) -> None:
    """Textures with sensor noise: a folder to fit and test (with masks), larger files, and new files to predict."""
    rng = np.random.default_rng(0)
    for folder, side, count in (("large/good", 1024, 48), ("parts/good", SIDE, COUNTS["good"]), ("new", SIDE, files)):
        for i in range(count):
            _save(work / folder / f"{i:04}.png", _texture(rng, side))
    for i in range(COUNTS["bad"]):
        pixels, mask = _texture(rng, SIDE), np.zeros((SIDE, SIDE), np.uint8)
        y, x = rng.integers(0, SIDE - 40, 2)
        mask[y : y + 40, x : x + 30] = 255
        pixels[mask > 0] = 255 - pixels[mask > 0]
        _save(work / "parts/bad" / f"{i:04}.png", pixels)
        _save(work / "parts/mask" / f"{i:04}.png", mask)
    _save(work / "large/bad/0.png", _texture(rng, 1024))


def _texture(rng: np.random.Generator, side: int) -> np.ndarray:
    coarse = Image.fromarray(rng.integers(60, 200, (8, 8, 3), dtype=np.uint8))
    base = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.int16)
    return np.clip(base + rng.normal(0, 6, base.shape), 0, 255).astype(np.uint8)


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def maps(count: int = 83) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Error maps in [0, 1] and their masks, in batches of 32; two of three images are defective."""
    generator, line = torch.Generator().manual_seed(0), torch.arange(SIDE)
    for start in range(0, count, 32):
        b = min(32, count - start)
        down, right = (line - torch.rand(2, b, 1, generator=generator) * SIDE).square()
        defective = (torch.arange(b) % 3 > 0)[:, None, None]
        mask = (down[:, :, None] + right[:, None, :] < (SIDE / 12) ** 2) & defective
        yield (0.1 * torch.randn(b, SIDE, SIDE, generator=generator) + 0.15 * mask).square().clamp(max=1), mask


def epochs(load: Callable[[], Iterator[Any]], later: int = 5) -> dict[str, float]:
    """Images a second in the first epoch, setting up included, and in later ones (median); peak memory."""
    before, rates = forget_peak(), []
    for _ in range(1 + later):
        start = clock()
        count = sum(map(len, load()))
        rates.append(count / (clock() - start))
    found = {"first epoch, images/s": rates[0], "later epochs, images/s": median(rates[1:])}
    return found | {"peak memory, MB": peak() - before}


def run(rows: dict[str, Callable[[Path], dict[str, float]]]) -> None:
    """`python <side>.py <row> <work> <threads>`: print the row's figures as the last line."""
    name, work, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    print("\n" + json.dumps(rows[name](Path(work))))


if __name__ == "__main__":
    make_files(Path(sys.argv[1]), int(sys.argv[2]))
