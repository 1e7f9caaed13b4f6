"""The data behind published numbers: our results can be compared with them only on the same images."""

from typing import NamedTuple

import pandas as pd

from adlight.data.download import COUNTS
from adlight.reports.rows import CONFIG

LIMITS = ("train_limit", "test_limit")
TEST_IMAGES: dict[str, dict[str | None, int]] = {  # number of test images by category; None stands for all categories
    "mvtec": {category: normal + anomalous for category, (_, normal, anomalous) in COUNTS.items()},
    "mnist": {None: 10_000},
    "cifar10": {None: 2_000},
}


class Protocol(NamedTuple):
    """The data that an experiment's published numbers were measured on."""

    dataset: str
    limits: tuple[str, str] = ("null", "null")  # the paper's values of the settings in `LIMITS`, as text
    whole: bool = False  # whether the numbers are means over all categories of the data set


PROTOCOLS = {
    "gan_mnist": Protocol("mnist"),
    "gan_cifar10": Protocol("cifar10"),
    "gan_mvtec": Protocol("mvtec", ("100", "100")),
    "mae_mvtec": Protocol("mvtec"),
    "article_table_1": Protocol("mvtec"),
    "mae_ablation": Protocol("mvtec", whole=True),
}


def find_mismatch(experiment: str, rows: pd.DataFrame) -> str:
    """Describe the first difference between a run's data and the data behind published numbers; empty if none is known.

    `rows` are the run's rows of `Runs.results`. Nothing is known about the data of the user's own tables.
    """
    if (expected := PROTOCOLS.get(experiment)) is None:
        return ""
    run = rows.iloc[0]
    if run["dataset"] != expected.dataset:
        return f"dataset {run['dataset']}"
    for name, limit in zip(LIMITS, expected.limits, strict=True):
        value = run.get(f"{CONFIG}dataset.{name}")
        if isinstance(value, str) and value != limit:
            return f"{name} {value}"
    known, categories = TEST_IMAGES[expected.dataset], rows[rows["level"] == "category"]
    if expected.whole and len(categories) and len(categories) < len(known):
        return f"{len(categories)} of {len(known)} categories"
    images = categories["normal_images"] + categories["anomalous_images"]
    for category, count in zip(categories["category"], images, strict=True):
        official = known.get(category, known.get(None))
        if expected.limits[1] == "null" and official is not None and pd.notna(count) and count != official:
            return f"{count} test images of {category}, not {official}"
    return ""
