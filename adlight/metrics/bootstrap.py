"""Bootstrap intervals of the image metrics: how much the metrics would vary with other test images."""

from collections.abc import Callable

import torch
from torch import Tensor

from adlight.metrics.image import ConfusionCounts, check_scores, missing_class

METRICS: dict[str, Callable[[ConfusionCounts], Tensor]] = {
    "auroc": ConfusionCounts.auroc,
    "ap": ConfusionCounts.average_precision,
    "f1_max": lambda counts: counts.f1().amax(-1),
}
DRAWS_AT_ONCE = 200_000  # 1.6 MB per array, which fits into the processor's cache


def bootstrap(
    score: Tensor, label: Tensor, stratum: Tensor | None = None, *, seed: int = 0, resamples: int = 1000
) -> dict[str, Tensor]:
    """Compute metrics on resampled sets of images with scores (N,) and labels 0/1 (N,).

    Each resample keeps the numbers of normal and anomalous images in each stratum, such as a category, (N,) int64
    (Efron & Tibshirani 1993, chapter 8). The draws are the same on every machine.

    Returns:
        `auroc`, `ap` and `f1_max` (the best F1 within the resample), each (resamples,).

    Raises:
        ValueError: a class is missing, or a score is not finite.
    """
    score, label = check_scores(score, label)
    if missing := missing_class(int((~label).sum()), int(label.sum())):
        raise ValueError(f"an interval needs both classes: {missing}")
    stratum = torch.zeros(len(label), dtype=torch.long) if stratum is None else stratum
    value, step = (-score).unique(return_inverse=True)  # distinct scores, descending, and each image's index into them
    rng = torch.Generator().manual_seed(seed)
    classes = [[step[chosen & (stratum == s)] for s in stratum.unique()] for chosen in (label, ~label)]
    drawn: dict[str, list[Tensor]] = {name: [] for name in METRICS}
    at_once = max(1, DRAWS_AT_ONCE // len(score))
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        counts = ConfusionCounts(*(_resample(strata, len(value), rows, rng) for strata in classes))
        for name, metric in METRICS.items():
            drawn[name].append(metric(counts))
    return {name: torch.cat(parts) for name, parts in drawn.items()}


def interval(draws: dict[str, Tensor]) -> dict[str, float]:
    """Compute the 95 % percentile interval of each metric (Efron & Tibshirani 1993, chapter 13), by `<metric>_<end>`.

    The interval of a metric that is 1 in every resample has no width, although other images might be harder. The
    threshold of the best F1 is chosen for each resample, as it is for the test.
    """
    ends = {"lower": 0.025, "upper": 0.975}
    return {f"{name}_{end}": values.quantile(q).item() for name, values in draws.items() for end, q in ends.items()}


def _resample(strata: list[Tensor], steps: int, rows: int, rng: torch.Generator) -> Tensor:
    """Draw a class's images with replacement within strata, and count them cumulatively. -> (rows, steps)."""
    count = torch.zeros(rows, steps, dtype=torch.float64)
    for stratum in strata:  # (n,), steps of its images
        if len(stratum):
            drawn = stratum[torch.randint(len(stratum), (rows, len(stratum)), generator=rng)]
            count.scatter_add_(1, drawn, count.new_ones(()).expand(drawn.shape))
    return count.cumsum(1)
