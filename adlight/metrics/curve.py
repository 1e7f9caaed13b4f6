"""What every ranking metric is read from: how many of each class lie at or above each score."""

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import pad


class NonFiniteScore(ValueError):
    """Some scores are NaN or infinite; `positions` says which, counted from 0."""

    def __init__(self, positions: list[int]) -> None:
        super().__init__(f"scores at positions {positions} are not finite")
        self.positions = positions


class Curve(NamedTuple):
    """What is found as the threshold falls, one step per distinct score; leading dimensions are resamples."""

    tp: Tensor  # (..., K) float64, anomalous ones at or above the step's score
    fp: Tensor  # (..., K) float64, normal ones

    def auroc(self) -> Tensor:
        """Area under the ROC curve by trapezoids, so that a tie counts half (...,)."""
        tp, fp = pad(self.tp, (1, 0)), pad(self.fp, (1, 0))
        area = (fp.diff() * (tp[..., 1:] + tp[..., :-1])).sum(-1) / 2
        return area / (tp[..., -1] * fp[..., -1])

    def average_precision(self) -> Tensor:
        """Precision summed over the steps in recall, without interpolation (...,)."""
        precision = self.tp / (self.tp + self.fp).clamp(min=1)  # a resample may find nothing at first
        return (pad(self.tp, (1, 0)).diff() * precision).sum(-1) / self.tp[..., -1]

    def f1(self) -> Tensor:
        """F1 at every step (..., K)."""
        return 2 * self.tp / (self.tp + self.fp + self.tp[..., -1:])

    def fpr_at_tpr(self, tpr: float) -> Tensor:
        """Share of normal ones flagged at the first step that finds this share of the others (...,)."""
        reached = self.tp / self.tp[..., -1:] >= tpr
        return (self.fp / self.fp[..., -1:]).gather(-1, reached.int().argmax(-1, keepdim=True)).squeeze(-1)


def checked(score: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return score as float64 and label as bool, both (N,) on the CPU."""
    if score.ndim != 1 or score.shape != label.shape:
        raise ValueError(f"score {tuple(score.shape)} and label {tuple(label.shape)} must be 1-D of one length")
    score, label = score.detach().cpu().double(), label.detach().cpu()
    if not score.isfinite().all():
        raise NonFiniteScore((~score.isfinite()).nonzero().flatten().tolist())
    if not ((label == 0) | (label == 1)).all():
        raise ValueError(f"labels must be 0 or 1, got {label.unique().tolist()}")
    return score, label.bool()


def missing_class(label: Tensor) -> str | None:
    """Say which class has no images, None where both are there."""
    if len(label) == 0:
        return "no images"
    return "no anomalous images" if not label.any() else "no normal images" if label.all() else None
