"""How far the image metrics would move with another draw of test images."""

from collections.abc import Callable

import torch
from torch import Tensor

from adlight.metrics.image import ConfusionCounts, check_scores, missing_class

METRICS: dict[str, Callable[[ConfusionCounts], Tensor]] = {
    "auroc": ConfusionCounts.auroc,
    "ap": ConfusionCounts.average_precision,
    "f1_max": lambda counts: counts.f1().amax(-1),
}
DRAWS_AT_ONCE = 200_000  # 1.6 MB per array: the processor's cache holds it


def bootstrap(
    score: Tensor, label: Tensor, stratum: Tensor | None = None, *, seed: int = 0, resamples: int = 1000
) -> dict[str, Tensor]:
    """Compute the metrics of resampled sets of images.

    Each resample keeps the numbers of normal and of anomalous images (Efron & Tibshirani 1993, chapter 8), within
    each stratum where there are several.

    Args:
        score: (N,) any finite real numbers.
        label: (N,) 0 normal, 1 anomalous.
        stratum: (N,) int64, such as categories; None = one.
        seed: of the draws; the same seed gives the same draws on every machine.
        resamples: how many sets of N images are drawn.

    Returns:
        `auroc`, `ap` and `f1_max` (the best F1 of each resample) of each resample (resamples,).

    Raises:
        ValueError: a class is missing, or a score is not finite.
    """
    score, label = check_scores(score, label)
    if missing := missing_class(int((~label).sum()), int(label.sum())):
        raise ValueError(f"an interval needs both classes: {missing}")
    stratum = torch.zeros(len(label), dtype=torch.long) if stratum is None else stratum
    value, place = (-score).unique(return_inverse=True)  # falling scores, and each image's step among them
    rng = torch.Generator().manual_seed(seed)
    sets = [[place[c & (stratum == s)] for s in stratum.unique()] for c in (label, ~label)]
    drawn: dict[str, list[Tensor]] = {name: [] for name in METRICS}
    at_once = max(1, DRAWS_AT_ONCE // len(score))
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        counts = ConfusionCounts(*(_resample(parts, len(value), rows, rng) for parts in sets))
        for name, metric in METRICS.items():
            drawn[name].append(metric(counts))
    return {name: torch.cat(parts) for name, parts in drawn.items()}


def interval(draws: dict[str, Tensor]) -> dict[str, float]:
    """Compute the 95 % percentile interval of each metric, as `<metric>_lower` and `<metric>_upper`.

    Percentiles of resamples (Efron & Tibshirani 1993, chapter 13). A metric that is 1 in each resample has no width,
    though another draw of images might have one; best F1 is chosen anew in each resample, as it is in the test.
    """
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    found = {name: values.quantile(ends).tolist() for name, values in draws.items()}
    return {f"{name}_{end}": pair[i] for name, pair in found.items() for i, end in enumerate(("lower", "upper"))}


def _resample(parts: list[Tensor], steps: int, rows: int, rng: torch.Generator) -> Tensor:
    # draws a class's images with replacement, stratum by stratum, and counts them up along the steps (rows, steps)
    count = torch.zeros(rows, steps, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    for place in parts:
        if len(place):
            picks = place[torch.randint(len(place), (rows, len(place)), generator=rng)]
            count.scatter_add_(1, picks, one.expand(picks.shape))
    return count.cumsum(1)
