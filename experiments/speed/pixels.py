"""Row `pixel`: pixel metrics by our histogram, torchmetrics and scikit-learn, each in a process of its own."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median

import torch
from timing import Row, forget_peak, memory, ratios, row, seconds
from torch import Tensor

SETS = (  # name, maps, side, repeats, methods; torchmetrics' binned metric is too slow for more maps
    ("one category", 83, 256, 3, ("histogram", "torchmetrics exact", "scikit-learn")),
    ("a whole test set", 1725, 224, 1, ("histogram", "torchmetrics exact", "scikit-learn")),
    ("a few maps", 8, 256, 1, ("histogram", "torchmetrics 1000 bins")),
)


def maps(count: int, side: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Seeded squared errors in [0, 1] (beyond that torchmetrics puts a sigmoid over them), two of three defective."""
    generator = torch.Generator().manual_seed(0)
    line, radius = torch.arange(side), side / 12
    for start in range(0, count, 32):
        b = min(32, count - start)
        centre = torch.rand(2, b, 1, generator=generator) * side
        down, right = (line - centre).square()  # (b, side) each
        mask = (down[:, :, None] + right[:, None, :] < radius**2) & (torch.arange(b) % 3 > 0)[:, None, None]
        error = 0.1 * torch.randn(b, side, side, generator=generator) + 0.15 * mask
        yield error.square().clamp(max=1), mask


class Ours:
    """All metrics: AUROC, AP, best F1, AUPRO."""

    def __init__(self) -> None:
        from adlight.metrics.pixel import PixelHistogram

        self.metric = PixelHistogram()

    def add(self, pixel: Tensor, mask: Tensor) -> None:
        self.metric.update(pixel, mask, torch.zeros(len(pixel), dtype=torch.long))

    def finish(self) -> None:
        from adlight.metrics.histogram import pixel_metrics

        self.auroc = pixel_metrics(self.metric.histogram(), None)[0]["pixel_auroc"]


class TorchMetrics:
    """AUROC only."""

    def __init__(self, thresholds: int | None = None) -> None:
        from torchmetrics.classification import BinaryAUROC

        self.metric = BinaryAUROC(thresholds=thresholds)

    def add(self, pixel: Tensor, mask: Tensor) -> None:
        self.metric.update(pixel, mask.long())

    def finish(self) -> None:
        self.auroc = float(self.metric.compute())


class ScikitLearn:
    """AUROC only."""

    def __init__(self) -> None:
        from sklearn.metrics import roc_auc_score

        self.metric, self.pixels, self.masks = roc_auc_score, [], []

    def add(self, pixel: Tensor, mask: Tensor) -> None:
        self.pixels.append(pixel.flatten())
        self.masks.append(mask.flatten())

    def finish(self) -> None:
        self.auroc = self.metric(torch.cat(self.masks).numpy(), torch.cat(self.pixels).numpy())


METHODS = {
    "histogram": Ours,
    "torchmetrics exact": TorchMetrics,
    "torchmetrics 1000 bins": lambda: TorchMetrics(1000),
    "scikit-learn": ScikitLearn,
}


def one(method: str, count: int, side: int) -> tuple[float, int, float]:
    """-> seconds in the metric, peak of memory beyond what the process had before, AUROC."""
    metric = METHODS[method]()
    for pixel, mask in maps(2, side):
        METHODS[method]().add(pixel, mask)  # lazy imports and the allocator's first pages are not what is measured
    forget_peak()
    before, taken = memory(), 0.0
    for pixel, mask in maps(count, side):
        taken += seconds(lambda pixel=pixel, mask=mask: metric.add(pixel, mask))
    taken += seconds(metric.finish)
    return taken, memory("VmHWM") - before, metric.auroc


def measure() -> list[Row]:
    rows = []
    for name, count, side, repeats, methods in SETS:
        found: dict[str, list[tuple[float, int, float]]] = {method: [] for method in methods}
        for _ in range(repeats):
            for method in methods:
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    found[method].append(pool.submit(one, method, count, side).result())
        times, memories, areas = (
            {method: [result[i] for result in results] for method, results in found.items()} for i in range(3)
        )
        what = f"{name}, {count:,} maps of {side} x {side}"
        for method in methods:
            rows.append(row("pixel", f"{what}: {method}", times[method], "s"))
            if count > 32:  # a few maps are lost among the pages that any process takes
                rows.append(row("pixel", f"{what}: {method}, peak memory", [m / 1e6 for m in memories[method]], "MB"))
        for method in methods[1:]:
            base, more = times["histogram"], memories["histogram"]
            rows.append(row("pixel", f"{what}: {method} / histogram, time", ratios(times[method], base), "ratio"))
            if count > 32:
                both = ratios(memories[method], more)
                rows.append(row("pixel", f"{what}: {method} / histogram, memory", both, "ratio"))
            apart = abs(median(areas[method]) - median(areas["histogram"]))
            rows.append(row("pixel", f"{what}: {method} - histogram, pixel AUROC", apart, ""))
    return rows
