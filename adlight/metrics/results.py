"""The metrics of a test: per category, per defect type, averaged over categories, and pooled."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import compress
from statistics import fmean
from typing import Any, NamedTuple

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


class Images(NamedTuple):
    """N test images."""

    records: Sequence[Record]
    score: Tensor  # (N,)
    label: Tensor  # (N,), 0 normal, 1 anomalous
    threshold: Tensor | None  # (N,), threshold for each image; None without thresholds

    def select(self, chosen: Tensor) -> "Images":
        """Select the images for which `chosen` (N,) is true."""
        threshold = None if self.threshold is None else self.threshold[chosen]
        records = list(compress(self.records, chosen.tolist()))
        return Images(records, self.score[chosen], self.label[chosen], threshold)

    def count_labels(self) -> Metrics:
        """Count the normal and anomalous images."""
        return {"normal": int((self.label == 0).sum()), "anomalous": int(self.label.sum())}


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
        defects: metrics by category and defect type, computed with all normal images of the category.
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

    def describe_left_out(self) -> list[str]:
        """Report the categories without AUROC, one line per reason."""
        named = dict[str, list[str]]()  # categories by reason
        for name in self.categories:
            if reason := self.left_out.get(f"{name}/auroc"):
                named.setdefault(reason, []).append(name)
        return [f"left out: AUROC, AP and F1 of {', '.join(names)}, as there are {why}" for why, names in named.items()]


def summarize(
    records: Sequence[Record],
    score: Tensor,
    calibration: Calibration,
    pixels: PixelHistogram,
    categories: Sequence[str],
) -> Results:
    """Compute all image and pixel metrics of N test images with scores (N,).

    `pixels` holds their pixel scores and masks, with a group for each of `categories`. Metrics that need thresholds are
    left out if `calibration` has none.

    Raises:
        UserError: a score is not finite; the message names the images.
    """
    check_finite_images(records, torch.isfinite(score))
    groups = {name: group for group, name in enumerate(categories) if any(r.category == name for r in records)}
    category = torch.tensor([categories.index(record.category) for record in records])
    label, threshold = torch.tensor([record.label for record in records]), None
    if calibration.is_fitted:
        threshold = torch.tensor([calibration.of(r.category).image for r in records], dtype=torch.float64)
    images = Images(records, score, label, threshold)
    tables, left_out, flagged = dict[str, Metrics](), dict[str, str](), list[Tensor]()
    for name, group in groups.items():
        histogram, used = pixels.histogram(group), calibration.of(name)
        if calibration.is_fitted:
            flagged.append(histogram.flagged(used.pixel))
        tables[name], reasons = compute_metrics(
            images.select(category == group), histogram, flagged[-1] if flagged else None
        )
        if calibration.is_fitted:
            tables[name] |= {"threshold": used.image, "pixel_threshold": used.pixel}
        if calibration.by_category and name not in calibration.by_category:
            reasons["threshold"] = "no normal validation image of it: that of all categories is used"
        left_out |= {f"{name}/{metric}": reason for metric, reason in reasons.items()}
    pooled, reasons = compute_metrics(images, pixels.histogram(), torch.stack(flagged).sum(0) if flagged else None)
    left_out |= {f"pooled/{metric}": reason for metric, reason in reasons.items()}
    results = Results(macro_mean(list(tables.values())), pooled, tables, left_out, by_defect(images))
    _add_intervals(results, images, category, groups)
    return results


def compute_metrics(images: Images, histogram: Histogram, flagged: Tensor | None) -> tuple[Metrics, dict[str, str]]:
    """Compute the metrics of images, and the reasons why others are left out, both by name.

    `flagged` are the numbers of normal and defective pixels above the thresholds, (2,); None without thresholds.
    """
    metrics, reasons = image_metrics(images.score, images.label, images.threshold)
    if any(record.label and not record.mask for record in images.records):
        # it is unknown which pixels of an anomalous image without a mask are normal
        reasons["pixel_auroc"] = "not every anomalous image has a mask"
    else:
        pixel, pixel_reasons = pixel_metrics(histogram, flagged)
        metrics, reasons = metrics | pixel, reasons | pixel_reasons
    return metrics | images.count_labels(), reasons


def check_finite_images(records: Sequence[Record], finite: Tensor) -> None:
    """Raise a UserError that names the images whose scores are not `finite` (N,)."""
    bad = [record.path for record, ok in zip(records, finite.tolist(), strict=True) if not ok]
    if bad:
        raise UserError(f"the scores of {len(bad)} image(s) are NaN or infinite: {', '.join(bad[:3])}")


def macro_mean(tables: Sequence[Metrics]) -> Metrics:
    """Average each metric over the tables that have it, except counts and thresholds."""
    values = dict[str, list[float]]()
    for table in tables:
        for name, value in table.items():
            if name not in NOT_AVERAGED:
                values.setdefault(name, []).append(value)
    return {name: sum(numbers) / len(numbers) for name, numbers in values.items()}


def mean_auroc(score: Tensor, label: Tensor, category: Tensor) -> float | None:
    """Average the AUROC over the categories that have both labels, because scores may differ in scale.

    (N,) each -> 0..1, or None if no category has both labels.
    """
    members = [category == number for number in category.unique()]
    values = [auroc(score[rows], label[rows]) for rows in members if label[rows].unique().numel() == 2]
    return fmean(values) if values else None


def by_defect(images: Images) -> dict[str, dict[str, Metrics]]:
    """Compute the image metrics of each defect type against all normal images of its category."""
    tables: dict[str, dict[str, Metrics]] = {}
    records = images.records
    for category, defect in sorted({(r.category, r.defect) for r in records if r.label}):
        chosen = torch.tensor([r.category == category and (not r.label or r.defect == defect) for r in records])
        selected = images.select(chosen)
        metrics, _ = image_metrics(selected.score, selected.label, selected.threshold)
        metrics |= selected.count_labels()
        tables.setdefault(category, {})[defect] = {key: metrics[key] for key in DEFECT_METRICS if key in metrics}
    return tables


def _add_intervals(results: Results, images: Images, category: Tensor, groups: dict[str, int]) -> None:
    draws = {}
    for name, group in groups.items():
        if "auroc" in results.categories[name]:
            selected = images.select(category == group)
            # a seed per category, because equal draws would not average out in the mean
            draws[name] = bootstrap(selected.score, selected.label, seed=derive_seed(f"bootstrap {name}"))
            results.categories[name] |= interval(draws[name])
    if draws:
        means = {metric: torch.stack([drawn[metric] for drawn in draws.values()]).mean(0) for metric in METRICS}
        results.mean |= interval(means)
    if "auroc" in results.pooled:
        seed = derive_seed("bootstrap")
        drawn = means if len(groups) == 1 else bootstrap(images.score, images.label, category, seed=seed)
        results.pooled |= interval(drawn)
