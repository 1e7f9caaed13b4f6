"""All metrics of a test: per category, per defect type, averaged over categories, and pooled."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import compress
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from adlight.metrics.bootstrap import METRICS, bootstrap, interval
from adlight.metrics.histogram import Histogram, pixel_metrics
from adlight.metrics.image import auroc, image_metrics
from adlight.metrics.pixel import PixelHistogram
from adlight.metrics.thresholds import Calibration
from adlight.rng import derive_seed
from adlight.types import Record, UserError

Metrics = dict[str, float]
NOT_AVERAGED = {"normal", "anomalous", "threshold", "pixel_threshold", "f1_max_threshold", "pixel_f1_max_threshold"}
DEFECT_METRICS = ("normal", "anomalous", "auroc", "ap", "recall_calibrated")


@dataclass
class Results:
    """Metrics as fractions (0..1), by name.

    `auroc_lower` and `auroc_upper` are the ends of the 95 % bootstrap interval of `auroc`; the same holds for `ap` and
    `f1_max`.

    Attributes:
        mean: macro mean over the categories that have the metric (the article's mean).
        pooled: metrics over the images of all categories; each image is compared with its category's threshold.
        categories: metrics per category, with the counts `normal` and `anomalous` and the thresholds used.
        left_out: reasons why metrics are missing, by `<category>/<metric>`.
        defects: metrics by category and defect type, for its images against all normal images of the category.
    """

    mean: Metrics
    pooled: Metrics
    categories: dict[str, Metrics]
    left_out: dict[str, str] = field(default_factory=dict)
    defects: dict[str, dict[str, Metrics]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the mean metrics at the top level, and everything else under its name."""
        rest = asdict(self)
        return {**rest.pop("mean"), **rest}


def summarize(
    records: Sequence[Record],
    score: Tensor,
    calibration: Calibration,
    pixels: PixelHistogram,
    categories: Sequence[str],
) -> Results:
    """Compute all image and pixel metrics of a test.

    Args:
        records: the N images.
        score: (N,), their raw scores.
        calibration: the thresholds; metrics that need them are left out if there are none.
        pixels: histogram of their pixel scores and masks, one group per category.
        categories: names of the groups.

    Raises:
        UserError: a score is not finite; the message names the images.
    """
    refuse_non_finite(records, torch.isfinite(score))
    groups = {name: group for group, name in enumerate(categories) if any(r.category == name for r in records)}
    label = torch.tensor([record.label for record in records])
    category = torch.tensor([categories.index(record.category) for record in records])
    threshold = None
    if calibration.is_fitted:
        threshold = torch.tensor([calibration.of(r.category).image for r in records], dtype=torch.float64)
    left_out: dict[str, str] = {}

    def compute(name: str, chosen: Tensor, histogram: Histogram, flagged: Tensor | None) -> Metrics:
        of_images, reasons = image_metrics(
            score[chosen], label[chosen], None if threshold is None else threshold[chosen]
        )
        of_pixels, pixel_reasons = pixel_metrics(histogram, flagged)
        # the pixels of an anomalous image without a mask are not known to be normal
        if any(record.label and not record.mask for record in compress(records, chosen.tolist())):
            of_pixels, pixel_reasons = {}, {"pixel_auroc": "not every anomalous image has a mask"}
        left_out.update({f"{name}/{key}": reason for key, reason in {**reasons, **pixel_reasons}.items()})
        return {**of_images, **of_pixels, **_count_labels(label[chosen])}

    tables, flagged = {}, []
    for name, group in groups.items():
        histogram, used = pixels.histogram(group), calibration.of(name)
        if calibration.is_fitted:
            flagged.append(histogram.flagged(used.pixel))
        tables[name] = compute(name, category == group, histogram, flagged[-1] if flagged else None)
        if calibration.is_fitted:
            tables[name] |= {"threshold": used.image, "pixel_threshold": used.pixel}
        if calibration.by_category and name not in calibration.by_category:
            left_out[f"{name}/threshold"] = "no normal validation image of it: that of all categories is used"
    everything = torch.ones_like(label, dtype=torch.bool)
    pooled = compute("pooled", everything, pixels.histogram(), torch.stack(flagged).sum(0) if flagged else None)
    defects = by_defect(records, score, label, threshold)
    results = Results(macro_mean(list(tables.values())), pooled, tables, left_out, defects)
    _add_intervals(results, score, label, category, groups)
    return results


def refuse_non_finite(records: Sequence[Record], finite: Tensor) -> None:
    """Raise a UserError that names the images whose scores are not `finite` (N,)."""
    bad = [record.path for record, ok in zip(records, finite.tolist(), strict=True) if not ok]
    if bad:
        raise UserError(f"the scores of {len(bad)} image(s) are NaN or infinite: {', '.join(bad[:3])}")


def macro_mean(tables: Sequence[Metrics]) -> Metrics:
    """Average each metric over the tables that have it, without counts and thresholds."""
    names = dict.fromkeys(name for table in tables for name in table if name not in NOT_AVERAGED)
    values = {name: [table[name] for table in tables if name in table] for name in names}
    return {name: sum(numbers) / len(numbers) for name, numbers in values.items()}


def mean_auroc(score: Tensor, label: Tensor, category: Tensor) -> float | None:
    """Average the AUROC over the categories that have both labels, because scores may differ in scale.

    (N,) each -> 0..1, or None if no category has both.
    """
    members = [category == number for number in category.unique()]
    values = [auroc(score[rows], label[rows]) for rows in members if label[rows].unique().numel() == 2]
    return fmean(values) if values else None


def by_defect(
    records: Sequence[Record], score: Tensor, label: Tensor, threshold: Tensor | None
) -> dict[str, dict[str, Metrics]]:
    """Compute the image metrics of each defect type against all normal images of its category."""
    tables: dict[str, dict[str, Metrics]] = {}
    for category, defect in sorted({(r.category, r.defect) for r in records if r.label}):
        chosen = torch.tensor([r.category == category and (not r.label or r.defect == defect) for r in records])
        metrics, _ = image_metrics(score[chosen], label[chosen], None if threshold is None else threshold[chosen])
        metrics |= _count_labels(label[chosen])
        tables.setdefault(category, {})[defect] = {key: metrics[key] for key in DEFECT_METRICS if key in metrics}
    return tables


def _count_labels(label: Tensor) -> Metrics:
    return {"normal": int((label == 0).sum()), "anomalous": int(label.sum())}


def _add_intervals(results: Results, score: Tensor, label: Tensor, category: Tensor, groups: dict[str, int]) -> None:
    draws = {}
    for name, group in groups.items():
        if "auroc" in results.categories[name]:
            chosen = category == group  # different seeds per category: equal draws would not average out in the mean
            draws[name] = bootstrap(score[chosen], label[chosen], seed=derive_seed(f"bootstrap {name}"))
            results.categories[name] |= interval(draws[name])
    if draws:
        means = {metric: torch.stack([drawn[metric] for drawn in draws.values()]).mean(0) for metric in METRICS}
        results.mean |= interval(means)
    if "auroc" in results.pooled:
        drawn = means if len(groups) == 1 else bootstrap(score, label, category, seed=derive_seed("bootstrap"))
        results.pooled |= interval(drawn)
