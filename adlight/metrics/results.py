"""All the numbers of a test: a category, a defect type, the mean over categories, and everything pooled."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from adlight.metrics.bootstrap import bootstrap, interval
from adlight.metrics.histogram import iou, pixel_metrics
from adlight.metrics.image import image_metrics
from adlight.metrics.pixel import PixelHistogram
from adlight.metrics.thresholds import Thresholds
from adlight.rng import derive_seed
from adlight.types import Record, UserError

Metrics = dict[str, float]
NOT_AVERAGED = {"normal", "anomalous", "threshold", "pixel_threshold", "f1_max_threshold", "pixel_f1_max_threshold"}
OF_A_DEFECT = ("normal", "anomalous", "auroc", "ap", "recall_calibrated")


@dataclass
class Results:
    """Metrics as fractions (0..1), by name.

    `auroc_lower` and `auroc_upper` are the ends of the 95 % bootstrap interval of `auroc`; so for `ap` and `f1_max`.

    Attributes:
        mean: macro mean over the categories that have the metric (the article's mean).
        pooled: over all images together, categories mixed; each image is compared with its category's threshold.
        categories: one set a category, with the counts `normal` and `anomalous`, and the thresholds used.
        left_out: why a metric is missing, by `<category>/<metric>`.
        defects: by category and defect type, its anomalous images against all normal ones of the category.
    """

    mean: Metrics
    pooled: Metrics
    categories: dict[str, Metrics]
    left_out: dict[str, str] = field(default_factory=dict)
    defects: dict[str, dict[str, Metrics]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The mean's metrics at the top, everything else under its name."""
        rest = asdict(self)
        return {**rest.pop("mean"), **rest}


def summarise(
    records: Sequence[Record],
    score: Tensor,
    thresholds: Thresholds,
    pixels: PixelHistogram,
    categories: Sequence[str],
) -> Results:
    """Compute image and pixel metrics.

    Args:
        records: the images scored.
        score: (N,) raw scores, in their order.
        thresholds: calibrated on normal images; NaN where nothing has calibrated them.
        pixels: the pixel scores and masks of the same images, a group a category.
        categories: names of the groups.

    Raises:
        UserError: a score is not finite; the text names the images.
    """
    refuse_non_finite(records, torch.isfinite(score))
    groups = {name: group for group, name in enumerate(categories) if any(r.category == name for r in records)}
    label = torch.tensor([record.label for record in records])
    of_category = torch.tensor([categories.index(record.category) for record in records])
    level = torch.tensor([thresholds.of(r.category).image for r in records], dtype=torch.float64)
    left_out: dict[str, str] = {}

    def metrics_of(name: str, chosen: Tensor, found: Metrics, missing: dict[str, str]) -> Metrics:
        """Image metrics of the chosen images, and the pixel metrics found."""
        mine = level[chosen]
        metrics, reasons = image_metrics(score[chosen], label[chosen], None if mine.isnan().any() else mine)
        # an image without a mask file is no pixel-level normal: pixel metrics need the masks of all anomalies
        if not all(r.mask for r, one in zip(records, chosen.tolist(), strict=True) if one and r.label):
            found, missing = {}, {"pixel_auroc": "not every anomalous image has a mask"}
        left_out.update({f"{name}/{key}": reason for key, reason in {**reasons, **missing}.items()})
        normal = (label[chosen] == 0).sum().item()
        return {**metrics, **found, "normal": normal, "anomalous": int(chosen.sum()) - normal}

    tables = {}
    for name, group in groups.items():
        used = thresholds.of(name)
        known = None if math.isnan(used.pixel) else used.pixel
        tables[name] = metrics_of(name, of_category == group, *pixel_metrics(pixels.histogram(group), known))
        if known is not None:
            tables[name] |= {"threshold": used.image, "pixel_threshold": used.pixel}
        if thresholds.categories and used is thresholds.pooled:
            left_out[f"{name}/threshold"] = "no normal validation image of it: that of all categories is used"
    everything = torch.ones(len(records), dtype=torch.bool)
    pooled = metrics_of("pooled", everything, *pooled_pixels(pixels, thresholds, groups))
    results = Results(macro_mean(list(tables.values())), pooled, tables, left_out)
    results.defects = by_defect(records, score, label, level)
    add_intervals(results, score, label, of_category, groups)
    return results


def refuse_non_finite(records: Sequence[Record], finite: Tensor) -> None:
    """Raise a UserError that names the images whose scores are NaN or infinite, where `finite` (N,) says so."""
    bad = [record.path for record, ok in zip(records, finite.tolist(), strict=True) if not ok]
    if bad:
        raise UserError(f"{len(bad)} image(s) have a score that is no finite number: {', '.join(bad[:3])}")


def pooled_pixels(
    pixels: PixelHistogram, thresholds: Thresholds, groups: dict[str, int]
) -> tuple[Metrics, dict[str, str]]:
    """Pixel metrics of all categories together; IoU with each pixel at its category's threshold."""
    found, missing = pixel_metrics(pixels.histogram(), None)
    if not math.isnan(thresholds.pooled.pixel):
        parts = [(pixels.histogram(group), thresholds.of(name).pixel) for name, group in groups.items()]
        flagged = torch.stack([histogram.flagged(level) for histogram, level in parts]).sum(0)
        share = iou(flagged, torch.stack([histogram.pixels.sum(1) for histogram, _ in parts]).sum(0))
        if share is None:
            missing["pixel_iou_calibrated"] = "no defective pixels"
        else:
            missing.pop("pixel_iou_calibrated")
            found["pixel_iou_calibrated"] = share
    return found, missing


def macro_mean(tables: Sequence[Metrics]) -> Metrics:
    """Mean of each metric over the tables that have it; counts and thresholds are not averaged."""
    names = dict.fromkeys(name for table in tables for name in table if name not in NOT_AVERAGED)
    values = {name: [table[name] for table in tables if name in table] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}


def by_defect(records: Sequence[Record], score: Tensor, label: Tensor, level: Tensor) -> dict[str, dict[str, Metrics]]:
    """Image metrics of each defect type against all normal images of its category."""
    found: dict[str, dict[str, Metrics]] = {}
    for category, defect in sorted({(r.category, r.defect) for r in records if r.label}):
        mine = [r.category == category and (not r.label or r.defect == defect) for r in records]
        chosen = torch.tensor(mine)
        own = level[chosen]
        metrics, _ = image_metrics(score[chosen], label[chosen], None if own.isnan().any() else own)
        anomalous = label[chosen].sum().item()
        metrics |= {"normal": len(own) - anomalous, "anomalous": anomalous}
        found.setdefault(category, {})[defect] = {key: metrics[key] for key in OF_A_DEFECT if key in metrics}
    return found


def add_intervals(results: Results, score: Tensor, label: Tensor, of_category: Tensor, groups: dict[str, int]) -> None:
    """Add the ends of the 95 % intervals of AUROC, AP and best F1 wherever these are."""
    draws = {}
    for name, group in groups.items():
        if "auroc" in results.categories[name]:
            chosen = of_category == group  # a seed of its own: equal draws would not average out in the mean
            draws[name] = bootstrap(score[chosen], label[chosen], seed=derive_seed(f"bootstrap {name}"))
            results.categories[name] |= interval(draws[name])
    if draws:
        first = next(iter(draws.values()))
        results.mean |= interval({key: torch.stack([d[key] for d in draws.values()]).mean(0) for key in first})
    if "auroc" in results.pooled:
        alone = len(groups) == 1
        results.pooled |= interval(
            first if alone else bootstrap(score, label, of_category, seed=derive_seed("bootstrap"))
        )
