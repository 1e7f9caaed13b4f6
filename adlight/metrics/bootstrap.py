"""How far the image metrics would move with another draw of test images."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from adlight.metrics.curve import Curve, checked, missing_class

METRICS: dict[str, Callable[[Curve], Tensor]] = {
    "auroc": Curve.auroc,
    "ap": Curve.average_precision,
    "f1_max": lambda curve: curve.f1().amax(-1),
}
DRAWS_AT_ONCE = 2_000_000  # 16 MB an array


def bootstrap_interval(
    score: Tensor,
    label: Tensor,
    metrics: Sequence[str] = tuple(METRICS),
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, float]:
    """Half the width of each metric's 95 % interval over resampled images.

    Percentiles (Efron & Tibshirani 1993, chapter 13) of stratified resamples: each keeps the numbers of
    normal and of anomalous images.

    Args:
        score: (N,) any finite real numbers.
        label: (N,) 0 normal, 1 anomalous.
        metrics: some of `auroc`, `ap`, `f1_max`.
        seed: of the draws; the same seed gives the same interval on every machine.
        resamples: how many sets of N images are drawn.

    Raises:
        ValueError: a class is missing, or a score is not finite.
    """
    score, label = checked(score, label)
    if missing := missing_class(label):
        raise ValueError(f"an interval needs both classes: {missing}")
    value, place = (-score).unique(return_inverse=True)  # falling scores, and each image's step among them
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, list[Tensor]] = {name: [] for name in metrics}
    at_once = max(1, DRAWS_AT_ONCE // len(score))
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        steps = (_resampled(place[c], len(value), rows, generator) for c in (label, ~label))
        curve = Curve(*steps)
        for name in metrics:
            drawn[name].append(METRICS[name](curve))
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    return {name: torch.cat(d).quantile(ends).diff().item() / 2 for name, d in drawn.items()}


def _resampled(place: Tensor, steps: int, rows: int, generator: torch.Generator) -> Tensor:
    """Draw a class's images with replacement and count them up along the steps (rows, steps)."""
    picks = place[torch.randint(len(place), (rows, len(place)), generator=generator)]
    count = torch.zeros(rows, steps, dtype=torch.float64)
    return count.scatter_add_(1, picks, torch.ones(1, dtype=torch.float64).expand(picks.shape)).cumsum(1)
