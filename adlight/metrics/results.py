"""All the numbers of a test: a category, the mean over categories, and everything pooled."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from adlight.metrics.histogram import pixel_metrics
from adlight.metrics.pixels import PixelHistogram
from adlight.metrics.ranking import image_metrics
from adlight.types import Record, UserError

Metrics = dict[str, float]


@dataclass
class Results:
    """Metrics as fractions (0..1), by name.

    Attributes:
        mean: macro mean over the categories that have the metric (the article's mean).
        pooled: over all images together, categories mixed.
        categories: one set a category, with the counts `normal` and `anomalous`.
        left_out: why a metric is missing, by `<category>/<metric>`.
    """

    mean: Metrics
    pooled: Metrics
    categories: dict[str, Metrics]
    left_out: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The mean's metrics at the top, everything else under its name."""
        rest = asdict(self)
        return {**rest.pop("mean"), **rest}


def summarise(
    records: Sequence[Record],
    score: Tensor,
    threshold: float,
    pixel_threshold: float,
    pixels: PixelHistogram,
    categories: Sequence[str],
) -> Results:
    """Compute image and pixel metrics.

    Args:
        records: the images scored.
        score: (N,) raw scores, in their order.
        threshold: calibrated on normal images; NaN where nothing has calibrated it.
        pixel_threshold: calibrated on their pixels, or NaN.
        pixels: the pixel scores and masks of the same images, a group a category.
        categories: names of the groups.

    Raises:
        UserError: a score is not finite; the text names the images.
    """
    refuse_non_finite(records, score)
    calibrated, pixel_calibrated = (None if math.isnan(value) else value for value in (threshold, pixel_threshold))
    label = torch.tensor([record.label for record in records])
    of_category = [record.category for record in records]
    left_out: dict[str, str] = {}

    def metrics_of(name: str, chosen: Tensor, group: int | None) -> Metrics:
        metrics, missing = image_metrics(score[chosen], label[chosen], calibrated)
        # an image without a mask file is no pixel-level normal: pixel metrics need the masks of all anomalies
        masked = all(r.mask for r, mine in zip(records, chosen.tolist(), strict=True) if mine and r.label)
        if masked:
            found, reasons = pixel_metrics(pixels.histogram(group), pixel_calibrated)
            metrics, missing = metrics | found, missing | reasons
        else:
            missing["pixel_auroc"] = "not every anomalous image has a mask"
        left_out.update({f"{name}/{key}": reason for key, reason in missing.items()})
        counts = {"normal": float((label[chosen] == 0).sum()), "anomalous": float((label[chosen] == 1).sum())}
        return {**metrics, **counts}

    tables = {
        name: metrics_of(name, torch.tensor([c == name for c in of_category]), group)
        for group, name in enumerate(categories)
        if name in of_category
    }
    pooled = metrics_of("pooled", torch.ones(len(records), dtype=torch.bool), None)
    return Results(macro_mean(list(tables.values())), pooled, tables, left_out)


def refuse_non_finite(records: Sequence[Record], score: Tensor) -> None:
    """Raise a UserError that names the images whose scores are NaN or infinite."""
    bad = [record.path for record, ok in zip(records, torch.isfinite(score).tolist(), strict=True) if not ok]
    if bad:
        raise UserError(f"{len(bad)} image(s) have a score that is no finite number: {', '.join(bad[:3])}")


def macro_mean(tables: Sequence[Metrics]) -> Metrics:
    """Mean of each metric over the tables that have it; counts and thresholds are not averaged."""
    names = [name for table in tables for name in table]
    skip = {"normal", "anomalous", "f1_max_threshold", "pixel_f1_max_threshold"}
    return {
        name: sum(found) / len(found)
        for name in dict.fromkeys(names)
        if name not in skip and (found := [table[name] for table in tables if name in table])
    }
